"""What the project promises about its own speed, measured: `PYTHONPATH=tests python -m benchmarks --help`."""
