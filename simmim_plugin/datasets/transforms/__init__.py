"""From a file to a sample: read, crop, flip, mask, pack."""
