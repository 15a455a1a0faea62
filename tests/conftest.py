"""One thread for torch: the nets here are small, and a busy machine then slows the tests less."""

import torch

torch.set_num_threads(1)
