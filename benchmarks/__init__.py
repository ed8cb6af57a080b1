"""Speed of each part against its plain version; results with dates are in RESULTS.md."""
