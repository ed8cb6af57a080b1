"""Watch a checkpoint play, in a window or as a video.

tdmpc2 play checkpoint=student.pt task=walker-run
tdmpc2 play student.pt task=walker-run episodes=3 seed=7 num_samples=128 iterations=3
tdmpc2 play student.pt tasks=[walker-run,cheetah-run] window=false out=two.mp4
tdmpc2 play student.pt task=walker-run mpc=false

Return, step and the value that the plan expects are written on every picture. Keys of the configuration such as
num_samples=128 set how it plans, mpc=false lets the policy act alone. In the window, space pauses and Escape ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.config import PLAYING_KEYS, key_names, typed_values
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("checkpoint", "file of any layout", required=True, bare=True),
    Option("window", "open a window; auto: where there is a display", "auto", choices=("auto", "true", "false")),
    Option("episodes", "of each task", 1, int, least=1, aliases=("eval_episodes",)),
    Option("seed", "first state of the first episode; by default as in evaluate", kind=int, least=0),
    Option("out", "the video; by default CHECKPOINT-TASK.mp4, where there is no window", kind=Path),
)
_READ = {*PLAYING_KEYS, "task", "tasks", "eval_seed", "obs", "augment_eval"}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from tdmpc2.commands.hydra_app import note_unread, print_notes

    values, texts = read_options("play", __doc__, argv, OPTIONS, key_names())
    print_notes()
    keys = typed_values(texts)
    note_unread("play", sorted(keys.keys() - _READ))
    if values["seed"] is not None:
        keys["eval_seed"] = values["seed"]
    if values["out"] is not None and values["out"].suffix != ".mp4":
        raise ValueError(f"out={values['out']} must end in .mp4")
    from tdmpc2.play.watching import play_file

    play_file(values["checkpoint"], keys, window=values["window"], episodes=values["episodes"], out=values["out"])
