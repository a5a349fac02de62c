"""Training: settings, the loop, schedules, checkpoints, metrics. Raises typed errors, prints nothing."""
