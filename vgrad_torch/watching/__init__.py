"""Watching a model while it trains: hooks, statistics and the monitor."""
