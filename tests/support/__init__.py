"""What several tests share: assertions, models, runs, a browser."""
