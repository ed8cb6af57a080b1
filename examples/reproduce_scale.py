"""Sizes of what examples/reproduce.py makes, the whole of it and a toy, and amounts of work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tdmpc2.tasks import MT30

WALKER = ("walker-stand", "walker-walk", "walker-run", "walker-walk-backwards", "walker-run-backwards")
CHEETAH = ("cheetah-run", "cheetah-run-backwards", "cheetah-run-front", "cheetah-run-back", "cheetah-jump")
SINGLE = (
    "finger-spin", "finger-turn-easy", "finger-turn-hard", "cartpole-swingup", "cup-catch", "reacher-three-easy",
    "hopper-hop-backwards",
)  # fmt: skip
EPISODE = 500  # steps
#: Batches of a held-out measurement.
BATCHES = 50


class Work(NamedTuple):
    """An amount of work, counted in what is timed beforehand, and rows that are stored."""

    updates: float = 0
    plans: float = 0
    cheap_plans: float = 0  # as while collecting for a teacher
    labels: float = 0  # plans that the student imitates, many side by side
    acts: float = 0  # actions of a policy alone
    steps: float = 0  # of the simulator
    rows: float = 0  # of episodes
    plan_rows: float = 0  # with the plan of a teacher
    value_rows: float = 0  # with reward and value of a teacher


NOTHING = Work()


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        bodies: teachers of tasks that are one body, by name.
        single: tasks with a teacher of their own.
        tasks: all tasks of the student.
        model, planner, collecting: keys of the model, and of its planner in evaluations and while collecting.
        training, teacher, student: keys of all runs, of teachers' and of students'.
        targets: what the student learns from its teachers. Plans weigh more than the others, and policies are left out:
            their divergence is summed over the action and grows with the teacher's certainty, so that at equal weights
            the student would copy the policies and not the plans, which are better. ``ranking`` holds how other actions
            than those of the data compare; its loss is a tenth as large as the others'.
        steps: steps of a teacher that shares a body, and of one task.
        updates: of the student, in each round.
        rounds: of training on states that the student has visited, after the first training.
        episodes: per task, of teachers with noise, of the other tasks, of the student in a round, and held out.
        selection_episodes: per task, of the student of each round: planned, and by its policy alone.
        eval_episodes: per task.
        labels: keys of the plans that the student imitates, one for every row of its data.
        recipes: copies that are made.
        quantize, heldout: further words of these commands.
    """

    bodies: dict[str, tuple[str, ...]]
    single: tuple[str, ...]
    tasks: tuple[str, ...]
    model: str = "model_size=1"
    planner: str = "plan_action=mean"
    collecting: str = "collect_num_samples=128 collect_iterations=4"
    training: str = "batch_size=256 eval_freq=0"
    teacher: str = "seed_steps=2500 utd=1 num_envs=1 save_freq=2500"
    student: str = "save_freq=5000 value_scale=per_task ema_decay=0.999"
    targets: tuple[str, ...] = ("reward", "value", "plan 5", "ranking 10")
    steps: tuple[int, int] = (50_000, 50_000)
    updates: int = 100_000
    rounds: int = 2
    episodes: tuple[int, int, int, int] = (40, 40, 40, 4)
    selection_episodes: tuple[int, int] = (3, 10)
    eval_episodes: int = 10
    labels: tuple[str, ...] = ("num_samples=256", "iterations=6")
    recipes: tuple[str, ...] = ("fp16", "int8", "mixed")
    quantize: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    teachers: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", {**self.bodies, **{task: (task,) for task in self.single}})

    @property
    def taught(self) -> set[str]:
        """Tasks that have a teacher."""
        return {task for tasks in self.teachers.values() for task in tasks}

    @property
    def rest(self) -> tuple[str, ...]:
        """Tasks that have none."""
        return tuple(task for task in self.tasks if task not in self.taught)


FULL = Scale({"walker": WALKER, "cheetah": CHEETAH}, SINGLE, MT30)
SMOKE = Scale(
    {"pendulum": ("pendulum-swingup", "pendulum-spin")},
    ("cartpole-balance",),
    ("pendulum-swingup", "pendulum-spin", "cartpole-balance", "cup-catch"),
    model="model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 task_dim=8 num_q=2",
    planner="plan_action=mean num_samples=16 num_elites=4 num_pi_trajs=4 iterations=1 num_threads=1",
    collecting="collect_num_samples=16 collect_iterations=1",
    training="batch_size=16 eval_freq=0 log_freq=10",
    teacher="seed_steps=450 utd=0.05 num_envs=1 save_freq=1000",
    student="save_freq=10 value_scale=per_task ema_decay=0.999",
    steps=(1100, 550),
    updates=20,
    rounds=1,
    episodes=(2, 1, 1, 1),
    selection_episodes=(1, 1),
    eval_episodes=1,
    labels=("num_samples=16", "num_elites=4", "num_pi_trajs=4", "iterations=1"),
    recipes=("int8",),
    quantize=("repeats=1", "plans=0", "rows=16"),
    heldout=("batches=2", "batch_size=16"),
)
