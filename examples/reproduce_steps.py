"""The steps of examples/reproduce.py: what is trained, played and measured, each as the command that a user types."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tdmpc2.checkpoints.reading import read_outline
from tdmpc2.support.runtime import processor_name, usable_cores
from tdmpc2.tasks import MT30

WALKER = ("walker-stand", "walker-walk", "walker-run", "walker-walk-backwards", "walker-run-backwards")
CHEETAH = ("cheetah-run", "cheetah-run-backwards", "cheetah-run-front", "cheetah-run-back", "cheetah-jump")
SINGLE = (
    "finger-spin", "finger-turn-easy", "finger-turn-hard", "cartpole-swingup", "cup-catch", "reacher-three-easy",
    "hopper-hop-backwards",
)  # fmt: skip
STAGES = ("teachers", "data", "student", "evaluation", "quantising", "cards")
#: What the student learns from its teachers.
TARGET_NAMES = ("reward", "value", "policy", "plan")


class Work(NamedTuple):
    """An amount of work, counted in what is timed beforehand, and rows of episodes that are stored."""

    updates: float = 0
    plans: float = 0
    cheap_plans: float = 0  # as while collecting for a teacher
    steps: float = 0  # of the simulator
    rows: float = 0


NOTHING = Work()


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        stage: one of :data:`STAGES`.
        name: of its record and its log.
        words: the command line behind ``tdmpc2``.
        work: what it takes, for the plan.
        store: data that are complete as soon as they are there.
        trained: a checkpoint, and the step at which it is trained.
        begins_anew: directory of an evaluation, which is not continued.
    """

    stage: str
    name: str
    words: tuple[str, ...]
    work: Work = NOTHING
    store: Path | None = None
    trained: tuple[Path, int] | None = None
    begins_anew: Path | None = None

    @property
    def line(self) -> str:
        """The line as it is typed."""
        return shlex.join(["tdmpc2", *self.words])

    def is_there(self) -> bool:
        """Tell if its result is complete, although it was killed before it was on record."""
        if self.store is not None:
            return (self.store / "meta.json").exists()
        if self.trained is None:
            return False
        path, steps = self.trained
        try:
            return int(read_outline(path)["step"]) >= steps
        except (ValueError, KeyError, TypeError):  # not there yet
            return False


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        bodies: teachers of tasks that are one body, by name.
        single: tasks with a teacher of their own.
        tasks: all tasks of the student.
        model, planner, collecting: keys of the model, and of its planner in evaluations and while collecting.
        training, teacher, student: keys of all runs, of teachers' and of students'.
        steps: steps of a teacher that shares a body, and of one task.
        updates: of the student, in each round.
        rounds: of training on states that the student has visited, after the first training.
        episodes: per task, of teachers with noise, of the other tasks, of the student in a round, and held out.
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
    student: str = "save_freq=5000"
    steps: tuple[int, int] = (50_000, 50_000)
    updates: int = 100_000
    rounds: int = 2
    episodes: tuple[int, int, int, int] = (40, 40, 10, 4)
    eval_episodes: int = 10
    labels: tuple[str, ...] = ("num_samples=128", "iterations=3")
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
    student="save_freq=10",
    steps=(1100, 550),
    updates=20,
    rounds=1,
    episodes=(2, 1, 1, 1),
    eval_episodes=1,
    labels=("num_samples=16", "num_elites=4", "num_pi_trajs=4", "iterations=1"),
    recipes=("int8",),
    quantize=("repeats=1", "plans=0", "rows=16"),
    heldout=("batches=2", "batch_size=16"),
)
EPISODE = 500  # steps


def _list(names: Sequence[str]) -> str:
    return f"[{','.join(names)}]"


def steps_of(scale: Scale, work: str, student: str | None, commit: str | None) -> list[Step]:
    """List all steps in the order in which they are taken.

    Args:
        scale: sizes.
        work: directory of everything.
        student: checkpoint that the student begins with, and that plays the tasks without a teacher.
        commit: of the source, for the cards.
    """
    return [
        *_teachers(scale, work),
        *_data(scale, work, student),
        *_student(scale, work, student),
        *_evaluations(scale, work, student),
        *_copies(scale, work),
        *_cards(scale, work, student, commit),
    ]


def _teachers(scale: Scale, work: str) -> Iterator[Step]:
    for name, tasks in scale.teachers.items():
        shared = name in scale.bodies
        steps = scale.steps[0 if shared else 1]
        words = (
            f"train task=mt30 mode=online tasks={_list(tasks)} share_body={str(shared).lower()} task_balance=tasks "
            f"steps={steps} {scale.model} {scale.planner} {scale.collecting} {scale.training} {scale.teacher} "
            f"work_dir={work}/teachers/{name}"
        )
        amount = Work(updates=steps, cheap_plans=steps, steps=steps, rows=2 * steps * len(tasks))
        trained = (Path(work, "teachers", name, "model.pt"), steps)
        yield Step("teachers", f"teacher-{name}", tuple(words.split()), amount, trained=trained)


def _collect(step: str, stage: str, scale: Scale, tasks: Sequence[str], out: str, episodes: int, *who: str) -> Step:
    words = ["collect", *who, f"tasks={_list(tasks)}", f"episodes_per_task={episodes}", f"data_dir={out}"]
    count = EPISODE * episodes * len(tasks)
    plans = count / 2 if any("planner" in word or "checkpoint=" in word for word in who) else 0
    amount = Work(plans=plans, steps=count, rows=count)
    return Step(stage, step, (*words, *scale.planner.split()), amount)


def _noisy(checkpoint: str) -> str:
    players = ("0.4 policy {} noise 0.3", "0.3 planner {} noise 0.3", "0.3 planner {} noise 0")
    return f"mix=[{', '.join(player.format(checkpoint) for player in players)}]"


def _data(scale: Scale, work: str, student: str | None) -> Iterator[Step]:
    parts = []
    for name, tasks in scale.teachers.items():
        run, replay, noisy = f"{work}/teachers/{name}", f"{work}/data/{name}_replay", f"{work}/data/{name}_noisy"
        rows = scale.steps[0 if name in scale.bodies else 1] * len(tasks)
        yield Step("data", f"replay-{name}", ("data", "from-run", run, replay), Work(rows=rows), store=Path(replay))
        yield _collect(f"noisy-{name}", "data", scale, tasks, noisy, scale.episodes[0], _noisy(f"{run}/model.pt"))
        parts += [replay, noisy]
    if scale.rest:
        out = f"{work}/data/rest"
        who = (f"checkpoint={student}",) if student else ()
        yield _collect("rest", "data", scale, scale.rest, out, scale.episodes[1], *who)
        parts.append(out)
    yield _merge("data", "data-0", parts, f"{work}/data/all-0")


def _merge(stage: str, name: str, parts: Sequence[str], out: str) -> Step:
    return Step(stage, name, ("data", "convert", *parts, out), store=Path(out))


def _student(scale: Scale, work: str, student: str | None) -> Iterator[Step]:
    files = {task: f"{work}/teachers/{name}/model.pt" for name, tasks in scale.teachers.items() for task in tasks}
    files |= {task: student for task in scale.rest if student}
    teachers = ", ".join(f"{task}: {file}" for task, file in files.items())
    start = student
    for number in range(scale.rounds + 1):
        run, data = f"{work}/student/{number}", f"{work}/data/all-{number}"
        if number:
            visited = f"{work}/data/visited-{number}"
            yield _collect(
                f"visited-{number}", "student", scale, scale.tasks, visited, scale.episodes[2], _noisy(str(start))
            )
            yield _merge("student", f"data-{number}", (f"{work}/data/all-{number - 1}", visited), data)
        known = (f"known={work}/data/all-{number - 1}",) if number else ()
        labelling = ("targets", data, f"teachers={{{teachers}}}", "columns=plan", *known, *scale.labels)
        new = _rows(scale, number) - (_rows(scale, number - 1) if number else 0)
        yield Step("student", f"labels-{number}", labelling, Work(cheap_plans=new))
        words = (
            f"train task=mt30 mode=offline tasks={_list(scale.tasks)} data_dir={data} task_balance=tasks "
            f"distillation_targets={_list(TARGET_NAMES)} distillation_cache=full "
            f"steps={scale.updates} {scale.model} {scale.planner} "
            f"{scale.training} {scale.student} work_dir={run}"
        )
        more = (f"teachers={{{teachers}}}", *([f"checkpoint={start}"] if start else []))
        trained = (Path(run, "model.pt"), scale.updates)
        amount = Work(updates=scale.updates)
        yield Step("student", f"student-{number}", (*words.split(), *more), amount, trained=trained)
        start = f"{run}/model.pt"


def _rows(scale: Scale, number: int) -> int:
    """Count the rows of the student's data in a round."""
    replay = sum(scale.steps[0 if name in scale.bodies else 1] * len(tasks) for name, tasks in scale.teachers.items())
    noisy, rest, visited, _ = scale.episodes
    episodes = noisy * len(scale.taught) + rest * len(scale.rest) + number * visited * len(scale.tasks)
    return replay + EPISODE * episodes


def _last(scale: Scale, work: str) -> str:
    return f"{work}/student/{scale.rounds}"


def _scores(scale: Scale, work: str, stage: str, name: str, file: str, tasks: Sequence[str]) -> Iterator[Step]:
    """Evaluate a file by planning and by its policy alone, on seeds that nothing was chosen on."""
    count = EPISODE * scale.eval_episodes * len(tasks)
    for way, mpc, plans in (("planned", "true", count), ("alone", "false", 0)):
        out = f"{work}/scores/{name}-{way}"
        words = (
            f"evaluate checkpoint={file} tasks={_list(tasks)} mpc={mpc} eval_episodes={scale.eval_episodes} "
            f"eval_seed=1000 {scale.planner} work_dir={out}"
        )
        amount = Work(plans=plans, steps=count)
        yield Step(stage, f"score-{name}-{way}", tuple(words.split()), amount, begins_anew=Path(out))


def _evaluations(scale: Scale, work: str, student: str | None) -> Iterator[Step]:
    for name, tasks in scale.teachers.items():
        yield from _scores(scale, work, "evaluation", name, f"{work}/teachers/{name}/model.pt", tasks)
    if student:
        yield from _scores(scale, work, "evaluation", "published", student, scale.tasks)
    file, held = f"{_last(scale, work)}/model.pt", f"{work}/data/heldout"
    yield from _scores(scale, work, "evaluation", "student", file, scale.tasks)
    who = ("seed=2", _noisy(file))
    yield _collect("heldout-data", "evaluation", scale, scale.tasks, held, scale.episodes[3], *who)
    reference = (f"teacher={student}",) if student else ()
    words = ("heldout", file, f"data={held}", "write=true", *reference, *scale.heldout)
    yield Step("evaluation", "heldout", words)


def _copies(scale: Scale, work: str) -> Iterator[Step]:
    source = f"{_last(scale, work)}/model.pt"
    recipes = ",".join(scale.recipes)
    words = ("quantize", source, f"recipes={recipes}", f"out={work}/copies", "force=true", *scale.quantize)
    yield Step("quantising", "copies", words)
    for recipe in scale.recipes:
        copy = f"{work}/copies/model_{recipe}.pt"
        yield from _scores(scale, work, "quantising", f"student_{recipe}", copy, scale.tasks)


def _cards(scale: Scale, work: str, student: str | None, commit: str | None) -> Iterator[Step]:
    about = ["license=mit", f"processor={processor_name()}, {usable_cores()} cores", "overwrite=true"]
    about += [f"commit={commit}"] if commit else []

    def card(name: str, file: str, runs: Sequence[str], scores: str, *more: str) -> Step:
        found = f"evaluation=[{work}/scores/{scores}-planned,{work}/scores/{scores}-alone]"
        words = ("checkpoint", "card", file, f"run={_list(runs)}", found, *more, *about, f"out={work}/models/{name}.pt")
        return Step("cards", f"card-{name}", words)

    for name in scale.teachers:
        run = f"{work}/teachers/{name}"
        yield card(f"teacher_{name}", f"{run}/model.pt", [run], name)
    run, rounds = _last(scale, work), [f"{work}/student/{number}" for number in range(scale.rounds + 1)]
    begin = (f"start={Path(student).name}" if student else "start=random weights",)
    data = (f"data={work}/data/all-{scale.rounds}",)
    yield card("student", f"{run}/model.pt", rounds, "student", *data, f"heldout={run}/heldout.json", *begin)
    for recipe in scale.recipes:
        copy = f"{work}/copies/model_{recipe}.pt"
        yield card(f"student_{recipe}", copy, rounds, f"student_{recipe}", *data, *begin)
