"""Data in the forms that other programs use: Minari, MMBench's demonstrations, LeRobot's data sets."""
