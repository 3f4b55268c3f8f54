"""Read, write, load and convert checkpoints of this package and of other projects."""
