"""What a warm process has imported, see warm.py; an optimizer imports more when the first one is made."""

import torch

from vgrad_torch import sweep, training
from vgrad_torch.cli import parser

torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
IMPORTED = (parser, sweep, training)
