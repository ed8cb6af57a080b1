"""Tasks that learn from each other's steps (``share_body``): which they are, and where there can be none."""

from __future__ import annotations

from collections.abc import Mapping

from tdmpc2.config.keys import Keys
from tdmpc2.tasks import body_of


def stored_for(names: Mapping[int, str], share_body: bool) -> dict[int, tuple[int, ...]]:
    """Find the tasks that an episode of each task is stored for.

    Args:
        names: of the tasks of a run, by id.
        share_body: it is stored for all of them that are one body with it.

    Returns:
        Task id -> ids, its own first.
    """
    if not share_body:
        return {task_id: (task_id,) for task_id in names}
    return {
        task_id: (task_id, *(other for other in names if other != task_id and names[other] in body_of(name)))
        for task_id, name in names.items()
    }


def check_sharing(cfg: Keys, stored: Mapping[int, tuple[int, ...]]) -> None:
    """Raise ``ValueError``, saying what to do, where ``share_body`` has no meaning.

    Args:
        cfg: a configuration with ``share_body``.
        stored: of :func:`stored_for`.
    """
    if cfg.mode != "online":
        raise ValueError(
            f"share_body=true shares the steps of environments, and mode={cfg.mode} takes none: set mode=online"
        )
    if cfg.episodic:
        raise ValueError(
            "share_body=true: an episode that terminates for one task may go on for another. The tasks that share a "
            "body never terminate: leave out episodic"
        )
    if all(len(ids) == 1 for ids in stored.values()):
        chosen = f"task={cfg.task}" if cfg.tasks is None else f"tasks=[{','.join(cfg.tasks)}]"
        raise ValueError(
            f"share_body=true, but {chosen} has no two tasks that are one body with different rewards, as walker-walk "
            "and walker-run are: leave out share_body, or name such tasks, as in task=mt30 "
            "tasks=[walker-walk,walker-run]"
        )
