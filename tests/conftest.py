"""Settings for all tests."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the nets here are small, and several tests run at once

import torch

torch.set_num_threads(1)

# A shell that starts the tests in the background has SIGINT ignored in them and in all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
