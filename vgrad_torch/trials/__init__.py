"""What is tried on a copy of a model, before training."""
