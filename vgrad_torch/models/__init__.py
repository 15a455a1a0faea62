"""Networks to train: `build_mlp`, its activations and its initial weights."""
