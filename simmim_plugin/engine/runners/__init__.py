"""Loops, logs, strategies and resuming."""
