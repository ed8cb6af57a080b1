"""Faster computation of the planner and the update, put in place from outside."""
