"""Prepare images once, before training: shrink them, measure mean and std, write sample data sets."""
