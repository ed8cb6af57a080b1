"""Play episodes and store them as training data.

tdmpc2 collect tasks=[cartpole-balance,walker-stand] episodes_per_task=20
tdmpc2 collect checkpoint=student.pt episodes_per_task=20 data_dir=data/mt30
tdmpc2 collect "mix=[0.2 random, 0.3 policy early.pt noise 0.3, 0.5 planner late.pt]" episodes_per_task=100

Without a checkpoint the actions are random. `mix` shares out every task's episodes, beginner to expert. An entry is a
share, `random`, `policy` or `planner`, a checkpoint, and perhaps `noise` with a standard deviation (0: none; left out:
the agent's own exploration noise). All of it stands in double quotes; an entry whose file name has `,`, `=`, `(` or `~`
also in single ones.

The same command again continues where it was stopped, and the files are those of an undisturbed run; once they are
complete it adds nothing, and another `seed` adds other episodes. Files that are already there stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tdmpc2.commands.hydra_app import App, composed, job, launch, load_keys, typed_names
from tdmpc2.config import parse_cfg, with_preset

if TYPE_CHECKING:
    import numpy as np

    from tdmpc2.play.collector import Shard

APP = App("collect", __doc__, "config_mt30", "student_config", bare="checkpoint")


@job
def run(cfg: DictConfig) -> None:
    """Collect what a composed configuration describes, and print returns per file and per task."""
    from rich import box, get_console
    from rich.table import Table

    from tdmpc2.checkpoints.files import load_file
    from tdmpc2.loading import load_agent
    from tdmpc2.play.collector import collect, episode_returns
    from tdmpc2.play.mixture import load_policies, mixture_entries
    from tdmpc2.support.runtime import set_num_threads

    config = parse_cfg(composed(cfg))
    set_num_threads(config.num_threads)
    keys = load_keys(cfg)
    mpc = with_preset(keys).get("mpc")
    typed = "mpc" in typed_names()
    if config.mix is not None and (typed or mpc is False):
        said = f"mpc={str(mpc).lower()}" if typed else "planner=policy"
        raise ValueError(
            f"{said} beside mix, whose entries say which checkpoint acts by planning (planner) and "
            "which by its policy alone (policy): leave it out"
        )
    if mpc is None:  # not typed: a checkpoint says how it plays
        stored = load_file(config.checkpoint).config if config.checkpoint is not None and config.mix is None else None
        mpc = (stored or {}).get("mpc", config.mpc)
    entries = mixture_entries(config.mix, config.checkpoint, mpc)
    policies = load_policies(entries, partial(load_agent, **keys))
    config = next((policy.agent.cfg for policy in policies if policy.agent is not None), config)
    console = get_console()

    def report(shard: Shard, returns: np.ndarray) -> None:
        low, mean, high = returns.min(), returns.mean(), returns.max()
        line = f"{shard.task}: return {mean:.1f} (from {low:.1f} to {high:.1f}), {shard.behaviour}, {shard.name}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    paths = collect(config, policies, Path(config.data_dir), report)
    table = Table("task", "episodes", "mean return", "from", "to", box=box.SIMPLE)
    for task, returns in episode_returns(paths, config).items():
        row = (f"{value:.1f}" for value in (returns.mean(), returns.min(), returns.max()))
        table.add_row(task, str(len(returns)), *row)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch(APP, run, argv)
