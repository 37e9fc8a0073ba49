"""Measurements, one script each, with its results in `results/`."""
