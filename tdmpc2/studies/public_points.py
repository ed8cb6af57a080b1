"""Published returns for the one task that runs learn by acting, for figures of their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tdmpc2.studies.sources import SHORT, returns_by_step
from tdmpc2.tasks import MT30

LABEL = "published: single-task TD-MPC2 (5M), mean and range of seeds"
_FILE = SHORT / "single_task_curves.csv"
_REPEAT = 2  # control steps in an agent's step of these tasks


class Point(NamedTuple):
    """Returns of published agents after as many steps."""

    step: int  # of the agent
    mean: float
    low: float  # of the seeds
    high: float


def published_points(configs: Sequence[Mapping[str, Any]], until: float) -> list[Point]:
    """Look up what single-task TD-MPC2 had while it learned the same.

    Args:
        configs: ``run.json`` of runs that are drawn together.
        until: the last step that is drawn, of the agent.

    Returns:
        Its points; none where the runs do not learn one and the same task of MT30 by acting, from states.
    """
    learned = {
        (tuple(config.get("tasks") or [config.get("task")]), config.get("mode"), config.get("obs", "state"))
        for config in configs
    }
    if len(learned) != 1:
        return []
    (((task, *others), mode, obs),) = learned
    if others or task not in MT30 or mode != "online" or obs != "state":
        return []
    found = returns_by_step("tdmpc2", task, _FILE)
    return [
        Point(step // _REPEAT, sum(values) / len(values), min(values), max(values))
        for step, values in sorted(found.items())
        if 0 < step <= _REPEAT * until
    ]
