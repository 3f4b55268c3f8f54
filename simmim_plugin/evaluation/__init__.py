"""Features of images, and how good they are."""
