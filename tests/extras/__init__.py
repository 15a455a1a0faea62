"""Tests that take longer or need packages that the others do not need: `make test-extras`."""
