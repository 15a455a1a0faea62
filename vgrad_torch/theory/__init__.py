"""What mean-field theory expects of an MLP before training."""
