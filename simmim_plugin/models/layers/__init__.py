"""What any Vision Transformer has: blocks, relative position bias, sizes."""
