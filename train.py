"""Train a student on offline data, distilled from a teacher or from scratch: `python train.py --help`."""

from __future__ import annotations

from tdmpc2_start import prepare

prepare()  # before the slow imports

import hydra
from omegaconf import DictConfig

from tdmpc2.commands.hydra_app import launch_script
from tdmpc2.commands.train import APP, run


@hydra.main(config_name="generic", config_path=".", version_base="1.3")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    launch_script(APP, main)
