"""Programs that are no tests: benchmarks, calibration, galleries, long trials. `python -m tests.scripts.bench`."""
