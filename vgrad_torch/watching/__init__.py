"""Watching a model while it trains: `watch`, the monitor, hooks that catch the gradients, and their statistics."""

from vgrad_torch.watching.monitor import Monitor as Monitor
from vgrad_torch.watching.watch import watch as watch
