"""Files, processes and text: what every package may use."""
