"""Checkpoint files and their layouts."""
