"""Training: hooks, optimizers, schedulers, loops and strategies."""
