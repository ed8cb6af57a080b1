"""Checks and pictures of stored data."""
