"""Distillation: targets, their losses, the teacher's outputs."""
