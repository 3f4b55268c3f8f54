"""Feature extraction, probes and metrics."""
