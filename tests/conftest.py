"""Settings for all tests."""

import signal

import torch

torch.set_num_threads(1)  # the nets here are small, and a busy machine then slows the tests less

# A shell that starts the tests in the background has SIGINT ignored in them and in all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
