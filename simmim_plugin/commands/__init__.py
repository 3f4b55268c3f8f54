"""The commands of `simmim`, one module each; cli.py lists them."""
