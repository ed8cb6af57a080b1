"""Quantised files: recipes, calibration, measurement, report."""
