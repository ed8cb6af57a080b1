"""Score a checkpoint by playing its tasks.

tdmpc2 evaluate checkpoint=student.pt
tdmpc2 evaluate student.pt task=walker-walk eval_episodes=3 save_video=true
tdmpc2 evaluate checkpoint=student.pt compare=student_int8.pt
tdmpc2 evaluate student.pt compare=random    # how much better than chance it is
tdmpc2 evaluate student.pt mpc=both      # planned, and by the policy alone
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from tdmpc2.commands.hydra_app import App, job, launch, load_keys

APP = App("evaluate", __doc__, "config_mt30", "student_config", bare="checkpoint")


@job
def run(cfg: DictConfig) -> None:
    """Evaluate the checkpoint of a composed configuration, and compare it with a second one."""
    keys = load_keys(cfg)
    paths = [str(keys[key]) for key in ("checkpoint", "compare") if keys.get(key) is not None]
    if keys.get("checkpoint") is None:
        raise ValueError(
            "Nothing to evaluate: name a file, `tdmpc2 evaluate FILE.pt`. Training leaves model.pt in its run "
            "directory; README.md has the line that downloads a published student"
        )
    from tdmpc2.play.scoring import score_files

    score_files(paths, keys)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch(APP, run, argv)
