"""Models in forms that run without PyTorch: ``tdmpc2 export``."""
