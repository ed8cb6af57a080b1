"""Tests of what runs on a CUDA GPU; their logic has tests on a CPU elsewhere."""
