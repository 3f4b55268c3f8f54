"""Commands of `simmim` that are no tool of tools/."""
