"""What drives a training: hooks, optimizers, schedules, runners."""
