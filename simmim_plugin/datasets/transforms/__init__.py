"""Transforms of the pipeline: load, crop, flip, mask, pack."""
