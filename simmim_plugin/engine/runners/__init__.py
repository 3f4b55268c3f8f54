"""Training loop, log lines, sharded training and resuming."""
