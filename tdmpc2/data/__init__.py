"""Offline data: chunk files on disk, episodes in memory, slices for training."""
