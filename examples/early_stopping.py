"""Stop training early: a callback ends a run whose evaluations no longer get better.

python examples/early_stopping.py [DIRECTORY]     # default: early_stopping; some minutes on two CPU cores

A small agent learns Gymnasium's Pendulum by acting. It is evaluated every 500 steps and would be trained for 10,000,
but ends after three evaluations in a row that did not beat the best one. ``best.pt`` in its directory is that best one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tdmpc2 import parse_cfg
from tdmpc2.play.evaluation import Evaluation
from tdmpc2.training.callbacks import Callback
from tdmpc2.training.online import train_online


class EarlyStopping(Callback):
    """End a run after ``patience`` evaluations in a row without a better score than the best so far."""

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.since = patience, float("-inf"), 0

    def on_evaluation(self, step: int, result: Evaluation) -> bool:
        """Compare with the best evaluation; True ends the run."""
        score = result.mean_score
        self.since = 0 if score > self.best else self.since + 1
        self.best = max(score, self.best)
        print(f"step {step:,}: {score:.0f}, best {self.best:.0f}, {self.since} evaluations since")
        return self.since >= self.patience


def main(directory: Path, steps: int = 10_000) -> Path:
    """Train until the callback ends it; returns the checkpoint."""
    sizes = {"model_size": None, "enc_dim": 64, "mlp_dim": 64, "latent_dim": 32, "num_q": 2}
    planner = {"num_samples": 64, "iterations": 2}
    schedule = {"steps": steps, "seed_steps": 400, "eval_freq": 500, "eval_episodes": 1, "batch_size": 64, "lr": 1e-3}
    cfg = parse_cfg({"task": "Pendulum-v1", "work_dir": str(directory), **sizes, **planner, **schedule})
    return train_online(cfg, None, callbacks=[EarlyStopping(patience=3)])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "early_stopping"))
