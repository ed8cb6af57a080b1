"""Families of environments: how a task's name is recognised, who builds it, and how it is scored.

A new family is one more row of :data:`FAMILIES`, or is offered by another package (:mod:`tdmpc2.envs.plugins`). Its
modules are imported when one of its tasks is first built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.checked import CheckedEnv
from tdmpc2.envs.images import images_of
from tdmpc2.envs.pixels import PixelEnv
from tdmpc2.envs.plugins import offers
from tdmpc2.support.extras import install_module
from tdmpc2.tasks import TASKS, TaskSpec, nearest

Floats = NDArray[np.float64]


class ScoreRule(NamedTuple):
    """A rule that turns returns and successes of episodes into scores."""

    label: str  # heading of a column of such scores
    score: Callable[[Floats, Floats], Floats]  # (returns [n], successes [n]) -> scores [n]
    normalized: bool = True  # on a scale of 0 to 100, so that a mean over tasks makes sense


SCORE_RULES = {
    "return/10": ScoreRule("normalized score", lambda returns, successes: returns / 10),
    "success": ScoreRule("normalized score", lambda returns, successes: 100 * successes),
    "return": ScoreRule("return", lambda returns, successes: returns, normalized=False),
}

#: Name of the mean over tasks whose scores are on different scales, which no score is.
MIXED = "mixed score"
WHY_MIXED = "no score of all tasks: the returns of some have no known scale, and the others are scored from 0 to 100"


@dataclass(frozen=True)
class Family:
    """Environments that are built and scored in one way.

    Attributes:
        name: of the family, for messages.
        pattern: regular expression that all names of its tasks match, and none of a family further down.
        make: ``module:function`` of (name, seed, render_mode), which builds a task.
        spec: ``module:function`` of (name), which measures a task that is not in the table.
        resolve: ``module:function`` of (name), which raises ``ValueError`` if there is no such task; empty: building an
            environment shows it.
        entry_point: what Gymnasium builds for ``tdmpc2/<task>-v0``; empty: its tasks are not registered there.
        score: key of :data:`SCORE_RULES`.
        tells_success: every episode says if it was a success; elsewhere it is one only where an environment reports it.
        renewable: ``reset(seed=s)`` of a used environment equals a new one built with seed s.
        needs: package that it needs, as Python imports it; empty: none but this one's own.
        more: tasks it has beside those of the table, for people.
        note: what is to be known of its installation.
        note_for: the versions that the note is about, as pip names them; with others it is not shown. Empty: any.
    """

    name: str
    pattern: str
    make: str
    spec: str = ""
    resolve: str = ""
    entry_point: str = ""
    score: str = "return/10"
    tells_success: bool = False
    renewable: bool = False
    needs: str = ""
    more: str = ""
    note: str = ""
    note_for: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Tell if the package that it needs is there; nothing is imported."""
        return not self.needs or find_spec(self.needs) is not None

    def has(self, name: str) -> bool:
        """Tell whether a task has a name of this family; it may hold anything, line breaks as well."""
        return re.fullmatch(self.pattern, name, re.DOTALL) is not None

    def build(
        self, name: str, seed: int | None, render_mode: str | None, obs: str = "state"
    ) -> gymnasium.Env[Any, Any]:
        """Build an environment of a task; what it does later is checked (:mod:`tdmpc2.envs.checked`).

        Raises:
            ValueError: unknown task, one that cannot be built here or draws no images (``obs="rgb"``), or a seed that
                is no integer from 0 to 2^32 - 1.
            EnvironmentFault: building it raised an error.
        """
        self.check(name)
        seed = checked_seed(seed)
        env: gymnasium.Env[Any, Any] = _function(self.make)(name, seed, render_mode)
        if obs == "state" and (images := images_of(env)):
            env.close()
            raise ValueError(images.as_state)
        return CheckedEnv(env if obs == "state" else _images(env, name, obs), name, seed)

    def measure(self, name: str) -> TaskSpec:
        """Read the facts of a task from its environment, which is built once for it.

        Raises:
            ValueError: as :meth:`build`.
        """
        self.check(name)
        spec: TaskSpec = _function(self.spec)(name)
        return spec

    def check(self, name: str) -> None:
        """Raise ``ValueError``, saying what to do, unless a task can be built here; none is built."""
        if name not in TASKS and not self.spec:
            raise ValueError(f"Unknown task '{name}': {self.name} has no such task.{nearest(name, TASKS)}")
        if self.resolve and name not in TASKS:
            try:
                _function(self.resolve)(name)
            except ImportError:
                if self.installed:
                    raise  # otherwise it cannot tell without the package
        if not self.installed:
            remedy = install_module(self.needs)
            raise ValueError(f"Task '{name}' needs {self.name}, which is not installed: {remedy}")


FAMILIES = (
    Family(
        "Gymnasium",
        # also whatever name is registered: see family_of
        r".*:.*|.*-v\d+|mujoco-(walker|halfcheetah)|bipedal-walker|lunarlander-continuous",
        make="tdmpc2.envs.gymnasium_env:make",
        spec="tdmpc2.envs.gymnasium_env:spec",
        resolve="tdmpc2.envs.modules:check_imported",
        score="return",
        more="and every registered id",
    ),
    Family(
        "Meta-World",
        r"mw-.*",
        make="tdmpc2.envs.meta_world:make",
        entry_point="tdmpc2.envs.meta_world:MetaWorldEnv",
        score="success",
        tells_success=True,
        renewable=True,
        needs="metaworld",
    ),
    Family(
        "MyoSuite",
        r"myo-.*",
        make="tdmpc2.envs.myo_suite:make",
        entry_point="tdmpc2.envs.myo_suite:MyoSuiteEnv",
        score="success",
        tells_success=True,
        renewable=True,
        needs="myosuite",
        note="`pip check` names its pins, which are known: these versions are tested together",
        note_for=("MyoSuite==2.11.6", "gymnasium==1.2.3", "mujoco==3.3.0"),
    ),
    Family(
        "ManiSkill",
        r"ms-.*|(lift|pick|stack)-cube|pick-ycb|turn-faucet",
        make="tdmpc2.envs.mani_skill:make",
        spec="tdmpc2.envs.mani_skill:spec",
        resolve="tdmpc2.envs.mani_skill:resolve",
        entry_point="tdmpc2.envs.mani_skill:ManiSkillEnv",
        renewable=True,
        needs="mani_skill",
    ),
    Family(
        "DMControl",  # last: its names have no form of their own
        r".*",
        make="tdmpc2.envs.dm_control:make",
        spec="tdmpc2.envs.dm_control:spec",
        resolve="tdmpc2.envs.dm_control:resolve",
        entry_point="tdmpc2.envs.dm_control:DMControlEnv",
        more="and every other of dm_control's suite",
        renewable=True,
    ),
)
_GYMNASIUM = FAMILIES[0]


def family_of(name: str) -> Family:
    """Find the family of a task by its name; the task need not exist, and its family's package is not imported.

    What is registered with Gymnasium is of that family whatever its name is. A family of an installed package has the
    names that no other one and none of the table has.
    """
    if name in gymnasium.registry:
        return _GYMNASIUM
    own = next(family for family in FAMILIES if family.has(name))
    if own is not FAMILIES[-1] or name in TASKS:
        return own
    return next((family for family in offered_families() if family.has(name)), own)


def offered_families() -> tuple[Family, ...]:
    """List the families that installed packages offer (:mod:`tdmpc2.envs.plugins`)."""
    return tuple(content for _, content in offers() if isinstance(content, Family))


def build_env(
    task: str, seed: int | None, render_mode: str | None = None, obs: str = "state"
) -> gymnasium.Env[Any, Any]:
    """Build the environment of one task; see :func:`tdmpc2.envs.make_env`."""
    return family_of(task).build(task, seed, render_mode, obs)


def checked_seed(seed: Any) -> int | None:
    """Check the seed of an environment, which may be numpy's kind of integer.

    Raises:
        ValueError: not None and not an integer from 0 to 2^32 - 1.
    """
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2^32 - 1 = {2**32 - 1}, or None")
    return int(seed)


def score_rule(spec: TaskSpec) -> ScoreRule:
    """Find how episodes of a task are scored; ``score_rule(spec).score(returns, successes)`` does it."""
    return rule_of(spec.name, spec.success_score)


def rule_of(name: str, success_score: bool) -> ScoreRule:
    """Find how episodes of the task of this name are scored; ``success_score``: by success, whatever its family."""
    return SCORE_RULES["success" if success_score else family_of(name).score]


def score_label(specs: Iterable[TaskSpec]) -> str:
    """Name the mean score of some tasks.

    It is ``normalized score``, ``return`` where the returns of none have a known scale, and :data:`MIXED` where those
    of some have none.
    """
    return common_label(score_rule(spec) for spec in specs)


def common_label(rules: Iterable[ScoreRule]) -> str:
    """Name the mean of scores by some rules, as :func:`score_label`."""
    rules = list(rules)
    without_scale = [rule.label for rule in rules if not rule.normalized]
    if not without_scale:
        return SCORE_RULES["return/10"].label
    return without_scale[0] if len(without_scale) == len(rules) else MIXED


def _images(env: gymnasium.Env[Any, Any], task: str, obs: str) -> gymnasium.Env[Any, Any]:
    if not (images_of(env) or hasattr(env.unwrapped, "frame")):
        env.close()
        raise ValueError(
            f"obs={obs}: task '{task}' draws no images: use obs=state, or give the environment a method frame(size) "
            "that returns uint8 [size, size, 3]"
        )
    return PixelEnv(env, size=64, stacked=3, state=obs == "rgb+state")


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
