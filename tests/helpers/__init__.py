"""Helpers of several test modules: data, agents, runs, environments, commands."""
