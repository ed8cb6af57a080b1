"""Entries of the key ``freeze``: the parts of a world model that training can leave as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tdmpc2.support.text import cut
from tdmpc2.tasks import nearest

#: Name -> modules of the world model. Target heads follow the Q heads, so they stay with them.
PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("_encoder",),
    "dynamics": ("_dynamics",),
    "reward": ("_reward",),
    "Q": ("_Qs", "_target_Qs"),
    "policy": ("_pi",),
    "termination": ("_termination",),
    "task_embedding": ("_task_emb",),
}


def check_freeze(names: Collection[str], absent: Iterable[str], checkpoint: str | None) -> None:
    """Check the parts that are to stay as they are.

    Args:
        names: of the parts.
        absent: parts that the run's model does not have.
        checkpoint: the file they are from.

    Raises:
        ValueError: an unknown part, nothing that is left to train, or no file.
    """
    known = [name for name in PARTS if name not in set(absent)]
    for name in names:
        if name not in known:
            of = "not of this model, which has" if name in PARTS else "not one of"
            raise ValueError(f"freeze: '{cut(name, 80)}' is {of} {', '.join(known)}.{nearest(name, known)}")
    if set(known) <= set(names):
        raise ValueError(f"freeze={','.join(names)} leaves nothing to train: leave out a part")
    if names and checkpoint is None:
        raise ValueError(
            f"freeze={','.join(names)} would keep random weights: name the file that they are from, checkpoint=FILE"
        )
