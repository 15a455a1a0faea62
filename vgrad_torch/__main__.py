"""python -m vgrad_torch."""

import sys

from vgrad_torch.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
