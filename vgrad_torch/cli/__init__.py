"""The command line."""

from vgrad_torch.cli.parser import main as main
