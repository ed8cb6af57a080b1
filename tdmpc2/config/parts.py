"""Entries of the keys ``freeze`` and ``reset``: parts of a model that training leaves as they are, or begins anew."""

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


#: What the policy's actions are computed by.
_ACTING = {"encoder", "policy", "task_embedding"}


def policy_is_from_file(checkpoint: str | None, reset: Collection[str]) -> bool:
    """True if a run starts with a policy that has learned, and not with a part of it that is new."""
    return checkpoint is not None and not _ACTING & set(reset)


def check_parts(freeze: Collection[str], reset: Collection[str], absent: Iterable[str], checkpoint: str | None) -> None:
    """Check the parts that are to stay as they are in a file, and those that do not come from it.

    Args:
        freeze: parts that stay.
        reset: parts that begin anew.
        absent: parts that the run's model does not have.
        checkpoint: the file.

    Raises:
        ValueError: an unknown part, nothing that is left to train or to take from the file, both at once, or no file.
    """
    known = [name for name in PARTS if name not in set(absent)]
    for key, names, without_file in (
        ("freeze", freeze, "would keep random weights: name the file that they are from, checkpoint=FILE"),
        ("reset", reset, "says what does not come from a file: name the file that the rest is from, checkpoint=FILE"),
    ):
        for name in names:
            if name not in known:
                of = "not of this model, which has" if name in PARTS else "not one of"
                raise ValueError(f"{key}: '{cut(name, 80)}' is {of} {', '.join(known)}.{nearest(name, known)}")
        if names and checkpoint is None:
            raise ValueError(f"{key}={','.join(names)} {without_file}")
    if set(known) <= set(freeze):
        raise ValueError(f"freeze={','.join(freeze)} leaves nothing to train: leave out a part")
    if set(known) <= set(reset):
        raise ValueError(f"reset={','.join(reset)} leaves nothing of {checkpoint}: leave out a part, or checkpoint")
    if both := [name for name in freeze if name in set(reset)]:
        raise ValueError(f"freeze and reset: {', '.join(both)} would stay random: leave it out of one of them")
