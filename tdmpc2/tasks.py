"""The task table: what a model must know of a task without building its simulator.

A task's position in its task set is its id. MT30 and MT80 share the first 30 ids.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class TaskSpec:
    """Static facts about one task.

    Attributes:
        name: name used on the command line, e.g. ``walker-walk``.
        obs_dim: length of the flat state observation.
        action_dim: number of action entries, each in [-1, 1].
        episode_length: agent steps per episode (one agent step is two control steps in dm_control).
        success_score: score by success rate (Meta-World) instead of return / 10 (dm_control).
        image: shape (channels, height, width) of the image that is part of its observation, beside which ``obs_dim``
            counts the other numbers; None for environments that observe numbers alone.
        padding: sizes (observation, action) that the tasks of its set are padded to at least; None: the largest of
            them. All tasks of a set have the same.
    """

    name: str
    obs_dim: int
    action_dim: int
    episode_length: int = 500
    success_score: bool = False
    image: tuple[int, int, int] | None = None
    padding: tuple[int, int] | None = None

    def plain(self) -> dict[str, Any]:
        """List the facts by name, as files hold them: image and padding only where there are some."""
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        late = {name: facts.pop(name) for name in ("image", "padding")}
        return facts | {name: list(sizes) for name, sizes in late.items() if sizes is not None}

    def unpadded(self) -> TaskSpec:
        """Return the facts that are the task's own, and not those of its set."""
        return replace(self, padding=None)


def padded_sizes(specs: Sequence[TaskSpec]) -> tuple[int, int]:
    """Find the sizes (O, A) that observations and actions of a set's tasks are padded to."""
    sizes = [size for spec in specs for size in ((spec.obs_dim, spec.action_dim), spec.padding) if size is not None]
    return max(obs_dim for obs_dim, _ in sizes), max(action_dim for _, action_dim in sizes)


SMALLEST_IMAGE = 39  # pixels to a side that the convolutions of the encoder need
_LARGEST = 2**20  # of an observation or action; far beyond any simulator


def read_specs(content: Any) -> tuple[TaskSpec, ...]:
    """Read the tasks that a file describes, in id order, with every fact checked.

    Args:
        content: a list of task specs, or of plain dicts with their attributes.

    Raises:
        ValueError: it is not; the message names the task and what is wrong.
    """
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"task_specs is a {type(content).__name__}, expected a list of tasks")
    return tuple(_read_spec(index, plain) for index, plain in enumerate(content))


def _read_spec(index: int, plain: Any) -> TaskSpec:
    if isinstance(plain, TaskSpec):
        return plain
    if not isinstance(plain, Mapping):
        raise ValueError(f"task_specs[{index}] is a {type(plain).__name__}, expected the facts of a task by name")
    facts = {"episode_length": 500, "success_score": False, "image": None, "padding": None, **plain}
    known = [field.name for field in fields(TaskSpec)]
    if set(facts) != set(known):
        odd = sorted(map(str, set(facts) ^ set(known)))[0]
        raise ValueError(f"task_specs[{index}]: {odd[:80]!r} is missing or not known; a task has {', '.join(known)}")
    name = facts["name"]
    sound = {
        "name": isinstance(name, str) and 0 < len(name) <= 300 and name.isprintable(),
        "image": facts["image"] is None or _is_image_shape(facts["image"]),
        "obs_dim": type(facts["obs_dim"]) is int and (facts["image"] is None) <= facts["obs_dim"] <= _LARGEST,
        "action_dim": type(facts["action_dim"]) is int and 0 < facts["action_dim"] <= _LARGEST,
        "episode_length": type(facts["episode_length"]) is int and 0 < facts["episode_length"] < 2**31,
        "success_score": isinstance(facts["success_score"], bool),
        "padding": facts["padding"] is None or is_padding(facts["padding"]),
    }
    if wrong := [key for key, right in sound.items() if not right]:
        value = facts[wrong[0]]
        short = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 10**80)
        found = ascii(value)[:80] if short else f"a {type(value).__name__}"
        raise ValueError(f"task_specs[{index}]: {wrong[0]} is {found}, expected {_FACTS[wrong[0]]}")
    late = {name: None if facts[name] is None else tuple(facts[name]) for name in ("image", "padding")}
    return TaskSpec(**{**facts, **late})


def is_padding(value: Any) -> bool:
    """Tell if a value is a pair of sizes that tasks can be padded to."""
    sizes = value if isinstance(value, (list, tuple)) and len(value) == 2 else (0,)
    return all(type(n) is int and 0 < n <= _LARGEST for n in sizes)


def _is_image_shape(value: Any) -> bool:
    sizes = value if isinstance(value, (list, tuple)) and len(value) == 3 else (0,)
    return all(type(n) is int and 0 < n <= 4096 for n in sizes) and min(sizes[1:]) >= SMALLEST_IMAGE


_FACTS = {
    "name": "a text of at most 300 letters",
    "obs_dim": f"a whole number from 1 to {_LARGEST:,}",
    "action_dim": f"a whole number from 1 to {_LARGEST:,}",
    "episode_length": "a whole number of steps, at least 1",
    "success_score": "true or false",
    "padding": f"two whole numbers from 1 to {_LARGEST:,}",
    "image": f"channels, height and width, of at least {SMALLEST_IMAGE} pixels to a side",
}


def _specs(obs_dim: int, action_dim: int, names: str) -> list[TaskSpec]:
    return [TaskSpec(name, obs_dim, action_dim) for name in names.split()]


_DM_CONTROL = [
    *_specs(24, 6, "walker-stand walker-walk walker-run walker-walk-backwards walker-run-backwards"),
    *_specs(24, 6, "walker-arabesque walker-lie-down walker-legs-up walker-headstand walker-flip walker-backflip"),
    *_specs(17, 6, "cheetah-run cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump"),
    *_specs(17, 6, "cheetah-stand-front cheetah-stand-back cheetah-lie-down cheetah-legs-up"),
    *_specs(17, 6, "cheetah-flip cheetah-flip-backwards"),
    *_specs(15, 4, "hopper-stand hopper-hop hopper-hop-backwards hopper-flip hopper-flip-backwards"),
    *_specs(6, 2, "reacher-easy reacher-hard"),
    *_specs(8, 3, "reacher-three-easy reacher-three-hard"),
    *_specs(10, 4, "reacher-four-easy reacher-four-hard"),
    *_specs(6, 1, "acrobot-swingup"),
    *_specs(3, 1, "pendulum-swingup pendulum-spin"),
    *_specs(5, 1, "cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse"),
    *_specs(8, 2, "cup-catch cup-spin"),
    *_specs(9, 2, "finger-spin"),
    *_specs(12, 2, "finger-turn-easy finger-turn-hard"),
    *_specs(24, 5, "fish-swim fish-obstacles"),
    *_specs(223, 38, "dog-stand dog-walk dog-trot dog-run"),
    *_specs(67, 21, "humanoid-stand humanoid-walk humanoid-run"),
    *_specs(78, 12, "quadruped-walk quadruped-run"),
]

_META_WORLD = [
    TaskSpec(f"mw-{name}", 39, 4, episode_length=100, success_score=True)
    for name in """
    assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall
    coffee-button coffee-pull coffee-push dial-turn disassemble door-open door-close drawer-close drawer-open
    faucet-open faucet-close hammer handle-press-side handle-press handle-pull-side handle-pull lever-pull
    peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-side
    plate-slide-back plate-slide-back-side push-back push push-wall reach reach-wall shelf-place soccer
    stick-push stick-pull sweep-into sweep window-open window-close bin-picking box-close door-lock door-unlock
    hand-insert
    """.split()
]

_MYO_SUITE = [
    TaskSpec(f"myo-{name}{suffix}", obs_dim, 39, episode_length=100, success_score=True)
    for name, obs_dim in {"reach": 115, "pose": 108, "obj-hold": 91, "key-turn": 93, "pen-twirl": 83}.items()
    for suffix in ("", "-hard")
]

#: Lengths are those of newt (arXiv 2511.19584), but for the hopper's, whose returns are out of 1000 as the others'.
_MANI_SKILL = [
    *(TaskSpec(f"ms-ant-{name}", 114, 8) for name in ("walk", "run")),
    *(TaskSpec(f"ms-cartpole-{name}", 10, 1) for name in ("balance", "swingup")),
    *(TaskSpec(f"ms-hopper-{name}", 15, 4) for name in ("stand", "hop")),
    *(
        TaskSpec(name, obs_dim, action_dim, episode_length, success_score=True)
        for name, obs_dim, action_dim, episode_length in (
            ("ms-pick-cube", 42, 4, 25),
            ("ms-push-cube", 35, 4, 25),
            ("ms-pull-cube", 35, 4, 25),
            ("ms-stack-cube", 48, 4, 25),
            ("ms-place-sphere", 39, 4, 25),
            ("ms-roll-ball", 44, 4, 40),
            ("ms-lift-peg", 32, 7, 25),
            ("ms-poke-cube", 54, 7, 25),
            ("ms-pull-cube-tool", 39, 7, 50),
            ("pick-cube", 42, 4, 100),
            ("stack-cube", 48, 4, 100),
        )
    ),
]

_GYMNASIUM = [
    TaskSpec("mujoco-walker", 17, 6, episode_length=1000),
    TaskSpec("mujoco-halfcheetah", 17, 6, episode_length=1000),
    TaskSpec("bipedal-walker", 24, 4, episode_length=1600),
    TaskSpec("lunarlander-continuous", 8, 2, episode_length=500),
]

TASKS: dict[str, TaskSpec] = {
    spec.name: spec for spec in [*_DM_CONTROL, *_META_WORLD, *_MYO_SUITE, *_MANI_SKILL, *_GYMNASIUM]
}

MT30: tuple[str, ...] = tuple(
    """
    walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup
    cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin
    finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop walker-walk-backwards
    walker-run-backwards cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump
    hopper-hop-backwards reacher-three-easy reacher-three-hard cup-spin pendulum-spin
    """.split()
)
MT80: tuple[str, ...] = MT30 + tuple(spec.name for spec in _META_WORLD)
TASK_SETS: dict[str, tuple[str, ...]] = {"mt30": MT30, "mt80": MT80}

#: Tasks that are one body with different rewards, a line each. From the same seed and under the same actions all tasks
#: of a line have the same first state, the same observations bit for bit and no terminations. So tasks of one model
#: are apart where first states differ (the pole of cartpole begins upright or hanging, the ball of cup-spin in the
#: cup) or observations do (finger-turn observes its distance from a target of another size). Reacher's targets differ
#: in size as well, but there only the reward depends on it.
BODIES: tuple[tuple[str, ...], ...] = tuple(
    tuple(line.split())
    for line in (
        "walker-stand walker-walk walker-run walker-walk-backwards walker-run-backwards walker-arabesque "
        "walker-lie-down walker-legs-up walker-headstand walker-flip walker-backflip",
        "cheetah-run cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump cheetah-stand-front "
        "cheetah-stand-back cheetah-lie-down cheetah-legs-up cheetah-flip cheetah-flip-backwards",
        "hopper-stand hopper-hop hopper-hop-backwards hopper-flip hopper-flip-backwards",
        "reacher-easy reacher-hard",
        "reacher-three-easy reacher-three-hard",
        "reacher-four-easy reacher-four-hard",
        "pendulum-swingup pendulum-spin",
        "cartpole-balance cartpole-balance-sparse",
        "cartpole-swingup cartpole-swingup-sparse",
        "dog-stand dog-walk dog-trot dog-run",
        "humanoid-stand humanoid-walk humanoid-run",
        "quadruped-walk quadruped-run",
    )
)

#: Defaults of keys that belong to tasks, wherever a run is of these alone: those of TD-MPC2 for Gymnasium's.
DEFAULTS: tuple[tuple[frozenset[str], dict[str, float]], ...] = (
    (frozenset(spec.name for spec in _GYMNASIUM), {"rho": 0.7, "discount_max": 0.99}),
)


def defaults_of(names: Iterable[str]) -> dict[str, float]:
    """Find the defaults that belong to some tasks (:data:`DEFAULTS`)."""
    found = set(names)
    return next((values for tasks, values in DEFAULTS if found and found <= tasks), {})


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for an error message: `` Did you mean 'x'?`` or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


def elsewhere(name: str) -> str:
    """A hint for an error message: how to train on a task that is known but not of the chosen set; or nothing."""
    if name not in TASKS:
        return ""
    sets = [f"set task={of}" for of, names in TASK_SETS.items() if name in names]
    return f" It is known: {', or '.join([*sets, 'list the tasks that you want in a file and set task=my_set.yaml'])}."


def listed(names: Sequence[str]) -> str:
    """List tasks for a message, the first four by name and the others by their number."""
    more = len(names) - 4
    return ", ".join(names) if more < 2 else f"{', '.join(names[:4])} and {more} others"


def matching(wanted: Sequence[str], names: Sequence[str], origin: str) -> tuple[str, ...]:
    """Resolve patterns such as ``mw-*`` among the tasks of a set.

    Args:
        wanted: names and patterns (``*``, ``?`` and ``[...]``, as in file names).
        names: tasks of the set, in id order.
        origin: of the names, for the message.

    Returns:
        With a pattern among them all tasks that are named or matched, in the order of the set and each once; otherwise
        what is wanted. Names that are not in the set are the last ones, for the caller to refuse.

    Raises:
        ValueError: a pattern that matches no task.
    """
    patterns = [name for name in wanted if name not in names and set("*?[") & set(name)]
    if not patterns:
        return tuple(wanted)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"tasks: the pattern '{pattern}' matches none of the tasks of {origin} ({listed(names)})")
    plain = [name for name in wanted if name not in patterns]
    found = [name for name in names if name in plain or any(fnmatchcase(name, pattern) for pattern in patterns)]
    return (*found, *(name for name in plain if name not in names))


def task_names(task: str) -> tuple[str, ...]:
    """The tasks of a task set in id order; a single task is a set of one."""
    return TASK_SETS.get(task, (task,))


def body_of(name: str) -> tuple[str, ...]:
    """The tasks that are one body with a task (:data:`BODIES`), itself among them."""
    return next((body for body in BODIES if name in body), (name,))


def lookup(name: str) -> TaskSpec:
    """The facts of one task of the table.

    Raises:
        ValueError: the name is not in the table; the message suggests the nearest one.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown task '{name}'.{nearest(name, [*TASKS, *TASK_SETS])}")
    return TASKS[name]
