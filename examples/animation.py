"""Play tasks of a checkpoint side by side, as an animated picture for a page.

python examples/animation.py walker assets/walker.gif [tasks=[walker-walk,walker-run]] [KEY=VALUE ...]

Keys are those of an agent (`tdmpc2 play --help`): num_samples=128 iterations=4 plans in a sixth of the time. Each task
is played from its reset; the picture shows steps 20 to 80, every second one, twenty of them a second.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    from PIL import Image
except ModuleNotFoundError as error:
    raise SystemExit("The picture is written by Pillow: pip install pillow") from error

from tdmpc2 import TDMPC2, load_agent
from tdmpc2.config import typed_values
from tdmpc2.play.rollout import Job
from tdmpc2.play.watching import Moment, watch
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.files import replacing
from tdmpc2.tracking.progress import progress

SIZE, SEED = 160, 1000  # pixels of a side; seed of the environments, on which nothing was chosen
FIRST, LAST, EVERY = 20, 80, 2  # steps that are shown
MILLISECONDS = 50  # for which each picture is shown


def frames(agent: TDMPC2, task_id: int) -> list[Image.Image]:
    """Play one task and draw the steps that are shown."""
    drawn: list[Image.Image] = []

    def show(moment: Moment) -> bool:
        if moment.step >= FIRST and (moment.step - FIRST) % EVERY == 0:
            drawn.append(Image.fromarray(moment.frame).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        return moment.step < LAST

    watch(agent, Job(task_id, SEED), show)
    return drawn


def main(checkpoint: str, target: Path, keys: Mapping[str, Any]) -> None:
    """Play all tasks of the file, or those that were chosen, and write the picture.

    Raises:
        ValueError: a file that cannot be used, an unknown key, or a disk that refuses.
    """
    agent = load_agent(checkpoint, **keys)
    columns = [frames(agent, task_id) for task_id in progress(agent.cfg.task_ids, "Playing", unit="tasks")]
    pictures = []
    for row in zip(*columns, strict=False):  # ends with the shortest episode
        picture = Image.new("RGB", (SIZE * len(row), SIZE))
        for number, frame in enumerate(row):
            picture.paste(frame, (SIZE * number, 0))
        pictures.append(picture.quantize(64, dither=Image.Dither.NONE))
    if not pictures:
        raise ValueError(f"{checkpoint}: an episode ended before step {FIRST}, the first that is shown")
    with replacing(target) as temporary:
        pictures[0].save(
            temporary, "GIF", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, optimize=True
        )
    print(f"{target}: {', '.join(agent.cfg.task_specs[i].name for i in agent.cfg.task_ids)}")


@one_line_errors
def command_line() -> None:
    """Read the words."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    if len(words) != 2:
        sys.exit(f"usage: python {sys.argv[0]} CHECKPOINT PICTURE.gif [KEY=VALUE ...]")
    keys = typed_values(dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word))
    main(words[0], Path(words[1]), keys)


if __name__ == "__main__":
    command_line()
