"""Tests that need a CUDA GPU; other tests check the same logic on a CPU."""
