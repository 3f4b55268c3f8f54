"""High-level functions: train, test, reconstruct images, extract and visualise features."""
