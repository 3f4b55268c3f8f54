"""Draw reconstructions, masks, features and training curves."""
