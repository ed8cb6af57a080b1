"""Score a checkpoint by playing its tasks: `python evaluate.py --help`."""

from __future__ import annotations

from tdmpc2_start import prepare

prepare()  # before the slow imports

import hydra
from omegaconf import DictConfig

from tdmpc2.commands.evaluate import APP, run
from tdmpc2.commands.hydra_app import launch_script


@hydra.main(config_name="config_mt30", config_path="./student_config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    launch_script(APP, main)
