"""Training one network: data, recipe, loop and checkpoints."""
