"""What a run tells people: console, CSV files, Weights & Biases, progress."""
