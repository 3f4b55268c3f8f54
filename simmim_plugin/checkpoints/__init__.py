"""Checkpoint files: ours, and those of other projects."""
