"""Play episodes and store them as training data.

python collect.py tasks=[cartpole-balance,walker-stand] episodes_per_task=20
python collect.py checkpoint=models/student.pt episodes_per_task=20 data_dir=data/mt30

Without a checkpoint the actions are random. Files that are already there stay; new chunks are added.
"""

from __future__ import annotations

from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig
from rich import get_console

from tdmpc2 import cli
from tdmpc2.config import parse_cfg
from tdmpc2.data.collector import collect
from tdmpc2.loading import load_agent
from tdmpc2.runtime import set_num_threads


@hydra.main(config_name="config_mt30", config_path="./student_config", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    settings = cli.composed(cfg)
    path = settings.get("checkpoint")
    agent = None if path is None else load_agent(path, **cli.load_keys(cfg))
    config = parse_cfg(settings) if agent is None else agent.cfg
    set_num_threads(config.num_threads)
    steps = config.episodes_per_task * sum(config.task_specs[i].episode_length for i in config.task_ids)
    if agent is not None and (line := agent.compile_planner(steps)):
        print(line)

    def report(task: str, returns: np.ndarray) -> None:
        low, mean, high = returns.min(), returns.mean(), returns.max()
        get_console().print(f"{task}: return {mean:.1f} (from {low:.1f} to {high:.1f})", highlight=False)

    paths = collect(config, agent, Path(config.data_dir), report)
    episodes = config.episodes_per_task * len(paths)
    print(f"{episodes} episodes in {len(paths)} files: {paths[0]} to {paths[-1].name}")


if __name__ == "__main__":
    cli.run(main)
