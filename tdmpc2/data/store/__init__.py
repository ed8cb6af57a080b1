"""The episode store."""
