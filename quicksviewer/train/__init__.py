"""Training: arguments, stages, trainer, checkpoints."""
