"""What is done to images once, before training."""
