"""Scripts that are not tests: benchmarks, calibration, galleries, long trials. `python -m tests.scripts.bench`."""
