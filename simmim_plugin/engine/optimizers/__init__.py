"""Mixed precision and parameter groups."""
