"""The command line: its options, its commands and what they print."""

from vgrad_torch.cli.parser import main as main
