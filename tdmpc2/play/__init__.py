"""Episodes played by policies: rollout, evaluation, collection."""
