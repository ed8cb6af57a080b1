"""TD-MPC-Opt: distil and quantise TD-MPC2 world models."""
