"""Building blocks of a Vision Transformer: patch embedding, attention, relative position bias, architectures."""
