"""Networks to train: `build_mlp`, its activations and its initializers."""

from vgrad_torch.models.mlp import build_mlp as build_mlp
