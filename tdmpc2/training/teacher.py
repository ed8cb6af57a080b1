"""The teachers of a run: one or one for each task, live, or as outputs that were computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.checkpoints.run_state import START_NEW
from tdmpc2.config import Config, TaskTeacher
from tdmpc2.data.placement import Data
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store.column_making import differences, read_made
from tdmpc2.data.store.importer import find_store
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, find_targets, open_targets
from tdmpc2.distillation.targets import TARGETS, only_cached
from tdmpc2.loading import load_agent
from tdmpc2.support.text import cut
from tdmpc2.training.teacher_cache import LazyTargets, compute_all


@dataclass(frozen=True)
class Teacher:
    """A teacher's file; :meth:`load` makes it a frozen agent.

    Attributes:
        path: the file.
        sha256: its checksum.
        task: what it plays, for files that do not say it themselves.
    """

    path: Path
    sha256: str
    task: str | None = None

    @classmethod
    def from_config(cls, cfg: Config | None) -> Teacher | None:
        """Look up the teacher that a configuration names, if it names one.

        Raises:
            ValueError: the file cannot be read.
        """
        if cfg is None or cfg.checkpoint is None:
            return None
        path = Path(cfg.checkpoint)
        return cls(path, file_sha256(path), None if cfg.multitask else cfg.task)

    @property
    def label(self) -> str:
        """Name of the file, for people who look into a cache of its outputs."""
        return self.path.name

    def load(self, device: str | torch.device, precision: str = "fp32", **settings: Any) -> TDMPC2:
        """Load the agent, without gradients.

        Args:
            device: where it computes.
            precision: what it computes in; only in fp32 can it teach live.
            settings: planning keys in place of the file's.

        Raises:
            ValueError: unreadable file, or not the one any more whose checksum is recorded.
        """
        task: dict[str, Any] = {} if self.task is None else {"task": self.task}
        file = load_file(self.path, identify=True)
        if file.sha256 != self.sha256:
            raise ValueError(
                f"{self.path} is not the file any more that it was when the run was started: start it again, with a "
                "teacher that is not replaced meanwhile"
            )
        agent = load_agent(file, device=str(device), precision=precision, **task, **settings)
        agent.model.requires_grad_(False)
        return agent


@dataclass(frozen=True)
class Teachers:
    """The files of teachers of single tasks; :meth:`load` makes them frozen agents.

    Attributes:
        files: by the task that each teaches.
    """

    files: Mapping[str, Teacher]

    @property
    def path(self) -> str:
        """The files in words."""
        return ", ".join(f"{teacher.path} of {task}" for task, teacher in self.files.items())

    @property
    def sha256(self) -> str:
        """A checksum of who teaches what, wherever the files lie."""
        lines = sorted(f"{task} {teacher.sha256}" for task, teacher in self.files.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def label(self) -> str:
        """Tasks and names of their files, for people who look into a cache of their outputs."""
        return cut(", ".join(f"{task}: {teacher.label}" for task, teacher in self.files.items()), 4000)

    def load(self, device: str | torch.device, precision: str = "fp32", **settings: Any) -> dict[str, TDMPC2]:
        """Load the agent of each task as :meth:`Teacher.load` does; a file that teaches several tasks is loaded once.

        Raises:
            ValueError: unreadable file, or one that does not know its task.
        """
        agents: dict[str, TDMPC2] = {}
        for teacher in self.files.values():
            if teacher.sha256 not in agents:
                agents[teacher.sha256] = teacher.load(device, precision, **settings)
        return {task: agents[teacher.sha256] for task, teacher in self.files.items()}


def find_teacher(cfg: Config, teacher_cfg: Config | None) -> Teacher | Teachers | None:
    """Look up the teacher or teachers that a run names, if it names any.

    Raises:
        ValueError: a file cannot be read, or teachers are named twice.
    """
    teacher = Teacher.from_config(teacher_cfg)
    if not cfg.teachers:
        return teacher
    if teacher is not None:
        raise ValueError(
            f"teachers={cfg.teachers[0].task}: ... beside teacher_config.checkpoint={teacher.path}: leave out one of "
            "them; a file of many tasks may stand behind several tasks of teachers"
        )
    return teachers_of(cfg.teachers)


def teachers_of(entries: Sequence[TaskTeacher]) -> Teachers:
    """Look up the files of teachers of single tasks.

    Raises:
        ValueError: one cannot be read.
    """
    files = {entry.task: Path(entry.checkpoint) for entry in entries}
    checksums = {path: file_sha256(path) for path in set(files.values())}
    return Teachers({task: Teacher(path, checksums[path], task) for task, path in files.items()})


def asked_live(cfg: Config) -> bool:
    """Tell if a teacher is asked in every update: for everything, or for what a full cache cannot hold."""
    if cfg.distillation_cache == "full":
        return any(TARGETS[name].cached_as is None for name in cfg.distillation_terms)
    return cfg.distillation_cache == "off"


def cached_columns(cfg: Config) -> tuple[str, ...]:
    """List the columns of a teacher's outputs that lie beside the data of a run; none if the teacher is asked live."""
    if cfg.distillation_cache == "off":
        return ()
    names = (TARGETS[name].cached_as for name in cfg.distillation_terms)
    return tuple(dict.fromkeys(name for name in names if name is not None))


def add_targets(
    data: Data,
    teacher: Teacher | Teachers,
    cfg: Config,
    device: torch.device,
    live: TDMPC2 | Mapping[str, TDMPC2] | None = None,
) -> tuple[Data, LazyTargets | None]:
    """Attach cached teacher outputs to the data, so that updates ask the live teacher for nothing of them.

    Args:
        data: data in a store.
        teacher: whose outputs; it is loaded only if some are missing.
        cfg: ``distillation_cache``: ``full``: all that are missing are computed now; ``lazy``: they are when they are
            needed. ``distillation_targets``: which.
        device: where the teacher computes.
        live: the teacher, if it is loaded already.

    Returns:
        The data with the columns; or the data as it was and what fills its batches.

    Raises:
        ValueError: a teacher of other tasks, no room on the disk, or no plans.
    """
    assert data.store is not None
    targets = [TARGETS[name] for name in cfg.distillation_terms]
    made = [_made(name, data, teacher) for name in cfg.distillation_terms if not TARGETS[name].live]
    names = dict.fromkeys(target.cached_as for target in targets if target.cached_as and target.live)
    columns = [open_targets(data.store, teacher.sha256, teacher.label, name) for name in names]
    if not all(column.complete(data.episodes) for column in columns):
        agent = live or teacher.load(device)
        if cfg.distillation_cache == "lazy":
            assert isinstance(agent, TDMPC2)  # Config refuses it for several
            steps = cfg.horizon if any(target.all_steps for target in targets) else 1
            return data, LazyTargets(columns, agent, None if data.place == "disk" else data.episodes, steps)
        compute_all(columns, agent, data.episodes)
    dataset = data.sampler.dataset
    given = {
        f"teacher_{column.name}": column.values
        if data.place == "disk"
        else column.column(data.episodes, dataset.rows.device)
        for column in (*columns, *made)
    }
    return data._replace(sampler=data.sampler.over(replace(dataset, targets=given))), None


class MadeOutputs:
    """How the outputs were made that only a cache serves, such as plans; a run that goes on wants the same.

    Args:
        run_dir: of the run.
        settings: of each column, by its name.
    """

    def __init__(self, run_dir: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._run_dir, self._settings = run_dir, settings

    def state(self) -> Mapping[str, Any]:
        """Return the settings of each column."""
        return dict(self._settings)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Require the settings of the beginning.

        Raises:
            ValueError: the outputs were made anew with other settings.
        """
        for name, settings in self._settings.items():
            if changed := differences(state[name], settings):
                raise ValueError(
                    f"{self._run_dir}: the column '{name}' was made anew since the run began ({changed}): make it "
                    f"again as it was, or {START_NEW}"
                )


def made_outputs(data: Data, teacher: Teacher | Teachers, cfg: Config) -> MadeOutputs | None:
    """Read how the outputs of a run were made that only a cache serves; None if it needs none.

    Args:
        data: data in a store, with its columns attached (:func:`add_targets`).
        teacher: whose outputs.
        cfg: the run.

    Raises:
        ValueError: a damaged column or record of one.
    """
    assert data.store is not None
    settings = {}
    for name in [target.cached_as for term in cfg.distillation_terms if not (target := TARGETS[term]).live]:
        assert name is not None
        column = find_targets(data.store, teacher.sha256, name)
        assert column is not None  # its rows were looked through when it was attached
        settings[name] = read_made(column.path, name)
    return MadeOutputs(cfg.run_dir, settings) if settings else None


def check_made(cfg: Config, teacher: Teacher | Teachers) -> None:
    """Raise ``ValueError`` if a column is not there that nothing but a cache serves, before any data are opened."""
    store = find_store(cfg.data_dir)
    for target in [name for name in cfg.distillation_terms if not TARGETS[name].live]:
        if store is None:
            raise ValueError(f"{cfg.data_dir} has none of {teacher.path}: {only_cached(target)}")
        _find_made(target, store, teacher)


def _find_made(target: str, store: EpisodeStore, teacher: Teacher | Teachers) -> TeacherTargets:
    name = TARGETS[target].cached_as
    assert name is not None
    column = find_targets(store, teacher.sha256, name)
    if column is None:
        raise ValueError(f"{store.path} has none of {teacher.path}: {only_cached(target)}")
    return column


def _made(target: str, data: Data, teacher: Teacher | Teachers) -> TeacherTargets:
    """Open the column of a target that only a cache serves.

    Raises:
        ValueError: it is not there, or not complete for the episodes of the run.
    """
    assert isinstance(data.store, EpisodeStore)
    column = _find_made(target, data.store, teacher)
    if missing := int(column.missing(data.episodes).sum()):
        raise ValueError(
            f"{column.file} lacks {missing:,} of the {len(data.episodes):,} episodes of the run: the command that "
            "began it goes on with it"
        )
    return column


def fit_pca(agent: TDMPC2, sampler: SliceSampler) -> str:
    """Fit the PCA of the target ``next_state_pca`` if that is wanted and not done yet.

    The latents are those of 10,000 random rows, the same in every process and whenever the run is started.

    Returns:
        One line about it, or nothing.

    Raises:
        ValueError: latents without variance.
    """
    if not agent.distillation.needs_pca:
        return ""
    cfg, teacher = agent.cfg, agent.teacher
    assert teacher is not None
    batches = (sampler.draw(step, 1000, 1, cfg.seed).to(agent.device) for step in range(10))
    share = agent.distillation.fit_pca((batch.obs[1], batch.task if cfg.multitask else None) for batch in batches)
    agent.distillation.load_state(agent.group.from_main(agent.distillation.state))  # the same bits in every process
    return (
        f"PCA of the teacher's latents: {cfg.latent_dim} of {teacher.cfg.latent_dim} components, "
        f"{share:.1%} of the variance"
    )
