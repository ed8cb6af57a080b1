"""Learning online, by acting: docs/algorithm.md, "Learning online"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from tdmpc2.config import Config, policy_is_from_file
from tdmpc2.data.ring_files import SavedRing
from tdmpc2.distributed import process_group
from tdmpc2.envs.registry import family_of
from tdmpc2.play.environment_failed import EnvironmentFailed
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.explorer import Explorer
from tdmpc2.play.rollout import Episode, Floats
from tdmpc2.support.mapped_files import FileChangedError
from tdmpc2.training.activity import Clock
from tdmpc2.training.callbacks import Callback
from tdmpc2.training.demonstrations import Batches, demonstrations_record
from tdmpc2.training.divergence import diagnose_stored
from tdmpc2.training.learner import Learner, cut_short
from tdmpc2.training.loop import Run
from tdmpc2.training.new_task import NewTask
from tdmpc2.training.online_estimate import dry_run_online
from tdmpc2.training.preflight import preflight
from tdmpc2.training.ring import make_ring, sharing_in_words
from tdmpc2.training.schedule import Schedule


def train_online(cfg: Config, teacher_cfg: Config | None, callbacks: Sequence[Callback] = ()) -> Path:
    """Learn by acting for ``cfg.steps`` steps, continuing the run in ``cfg.run_dir`` if there is one.

    Started by torchrun, the processes share the environments and each batch, and every one holds the whole buffer. How
    many they are changes nothing but rounding, which planning can turn into another action.

    Args:
        cfg: the student.
        teacher_cfg: names the teacher's checkpoint; its architecture is the file's own.
        callbacks: are told what happens, and may end the run (:mod:`tdmpc2.training.callbacks`).

    Returns:
        The deployable checkpoint, ``<run_dir>/model.pt``.

    Raises:
        ValueError: something is missing or does not fit, an environment failed, the directory belongs to another run or
            process, or the training diverged.
        SystemExit: with code :data:`~tdmpc2.training.guards.STOPPED` after SIGTERM or SIGINT, when all is saved.
    """
    with process_group(cfg.device) as group:
        group.rows(cfg.batch_size)  # refused here, before anything is played or written
        if cfg.dry_run:
            if group.main:
                print(*dry_run_online(cfg, teacher_cfg), sep="\n")
            return cfg.run_dir / "model.pt"
        preflight(cfg, teacher_cfg)
        shown = demonstrations_record(cfg)
        with Run.open(cfg, teacher_cfg, group, evaluate, shown, stride=len(cfg.envs), evaluate_first=True) as run:
            run.tell(callbacks)
            if not run.finished(cut_short(run.resumed.parts)):
                with Explorer(cfg, run.agent, group) as explorer:
                    for _ in Loop(run, explorer).turns():
                        pass
            return run.model_path


class Loop:
    """The loop of a run that learns online, with all that it needs.

    Args:
        run: is opened, and started here.
        explorer: plays for it.
        in_stack: its agent is one of several that learn in one batch (:mod:`tdmpc2.training.specialists`).

    Attributes:
        replay: the buffer.
        batches: drawn from it.
        learner: makes the updates.
        clock: what the time is spent on.
    """

    def __init__(self, run: Run, explorer: Explorer, in_stack: bool = False) -> None:
        cfg, device = run.cfg, run.agent.device
        self.run, self.explorer, self._schedule = run, explorer, Schedule.of(cfg)
        self.replay = make_ring(cfg, device, run.group)
        self.batches = Batches.of(cfg, self.replay, device, run.resumed.record["data"], run.group)
        self.learner, self._new_task = Learner(run, self.replay, self.batches), NewTask(run, self.replay)
        run.attach("replay", SavedRing(self.replay, cfg.run_dir / "replay", cfg.task_ids, run.group))
        run.attach("explorer", explorer)
        run.attach("learner", self.learner)
        if run.new_task is not None:
            run.attach("new_task", self._new_task)
        self._has_policy = policy_is_from_file(cfg.checkpoint, cfg.reset) and not run.resumed.record.get(
            "random_seed_steps"
        )
        tells = any(family_of(cfg.task_names[i]).tells_success for i in cfg.task_ids)
        self.clock = Clock(self.learner.done, tells)
        environments = f"{len(cfg.envs)} environments" if len(cfg.envs) > 1 else "1 environment"
        environments += sharing_in_words(cfg)
        source = f"{environments}, a buffer of {self.replay.capacity:,} rows on {self.replay.rows.device}"
        notes = *self.batches.notes, *explorer.notes, explorer.compile_planner()
        run.start(
            source,
            *notes,
            diagnose=diagnose_stored(cfg.demonstrations),
            activity=self.clock.activity,
            in_stack=in_stack,
        )

    def turns(self) -> Iterator[int]:
        """Take one turn after another until the run's end: a step in each environment, and the updates due.

        Yields:
            The number of the step that was taken.
        """
        run, cfg, learner = self.run, self.run.cfg, self.learner
        for step in run.steps(again=learner.interrupted):
            taking: AbstractContextManager[None] = nullcontext()
            if not learner.interrupted:
                with saving_before(step, run):
                    self.begin(step)
                    actions = self.choose(step)
                    self.owe(step)
                    if run.cfg.env_workers:
                        taking = self._taking_meanwhile(step, actions)
                    else:
                        self._take(step, actions)
            with saving_at(step, run, learner), taking, self.clock("updating"):
                metrics = learner.update()
            self.before_saving(step)
            run.after_update(step, metrics)
            yield step
        if not learner.done and not run.ended:
            run.message(
                f"No update was made: the first one needs more than seed_steps={cfg.seed_steps:,} steps, and an "
                f"episode that ended before the last of the {cfg.steps:,}. Take more steps"
            )

    def begin(self, step: int) -> None:
        """Begin a turn: store the episodes that have ended, and reset their environments."""
        self.learner.store(step, self.explorer.take_ended())
        self._new_task.choose()
        with self.clock("environment"):
            self.explorer.begin()

    def is_random(self, step: int) -> bool:
        """Tell whether the actions of a turn are random, and not planned."""
        return self._schedule.is_random(step) or not self._new_task.chosen

    def choose(self, step: int) -> Floats:
        """Choose the actions of a turn."""
        with self.clock("acting"):
            prior = self._has_policy and self._new_task.chosen
            with blaming_updates(self.run):
                actions = self.explorer.act(step, random=self.is_random(step), prior=prior)
            self.run.check_finite()  # the actions are here, so that there is nothing to wait for
            return actions

    def owe(self, step: int, sign: int = 1) -> None:
        """Count the updates that are due with a step, or with ``sign=-1`` are not."""
        self.learner.owed += sign * self._schedule.updates_due(step)

    def _take(self, step: int, actions: Floats) -> None:
        """Take a step in each environment.

        Raises:
            EnvironmentFailed: one failed. The updates of the turn are then not due, whether they were made or not.
        """
        try:
            with self.clock("environment"):
                ended = self.explorer.step(actions)
        except EnvironmentFailed:
            self.owe(step, -1)
            self.learner.interrupted = False  # the turn is taken again, with the rest of its updates
            raise
        self.taken(step, ended)

    @contextmanager
    def _taking_meanwhile(self, step: int, actions: Floats) -> Iterator[None]:
        """Take a step in worker processes while the updates of the turn are made here.

        They learn from episodes that ended before it, so the run is the same as if one followed the other.
        """
        self.explorer.begin_step(actions)
        try:
            yield
        except FileChangedError:  # the run is saved in the middle of the updates, unless others wait for this process
            if self.run.group.world_size == 1:
                with saving_before(step, self.run):
                    self._take(step, actions)
            raise
        with saving_before(step, self.run):
            self._take(step, actions)

    def taken(self, step: int, ended: Sequence[Episode]) -> None:
        """Note the episodes that ended with a step."""
        self.clock.played(ended)
        self.run.log_episodes(step, [_row(self.run.cfg, episode) for episode in ended])

    def before_saving(self, step: int) -> None:
        """Count the updates of the turn and, at the end of the run, store the episodes that have ended."""
        self.clock.updates = self.learner.done
        if step >= self.run.cfg.steps and not self.learner.interrupted:
            self.learner.store(step, self.explorer.take_ended())


@contextmanager
def blaming_updates(run: Run) -> Iterator[None]:
    """Say that the training diverged where actions cannot be chosen because an update had no finite values.

    The next training line or save would find it, but the turn after the update comes first.
    """
    try:
        yield
    except ValueError:
        run.check_finite()
        raise


@contextmanager
def saving_before(step: int, run: Run) -> Iterator[None]:
    """Save at the turn before ``step`` if an environment fails in it, so that the same command goes on from there.

    A new episode then begins in that environment.
    """
    try:
        yield
    except EnvironmentFailed as error:
        last, place = step - len(run.cfg.envs), f"step {step:,} of the run"
        if last <= 0 or not run.cfg.save_agent:
            raise ValueError(f"{error} ({place}){error.remedy}") from error
        run.save(last)
        goes_on = ", and the same command goes on with a new episode there" if error.remedy else ""
        raise ValueError(f"{error} ({place}; what it learned before is saved{goes_on})") from error


@contextmanager
def saving_at(step: int, run: Run, learner: Learner) -> Iterator[None]:
    """Save in the middle of the updates of ``step`` if the demonstrations change on disk, as after a signal.

    One of several processes may be the only one to notice, and cannot save alone: what was saved last is kept then.
    """
    try:
        yield
    except FileChangedError:
        if run.group.world_size == 1:
            learner.interrupted = True
            run.save(step)
        raise


def _row(cfg: Config, episode: Episode) -> dict[str, str | float]:
    return {
        "task": cfg.task_specs[episode.job.task_id].name,
        "return": episode.episode_return,
        "length": len(episode.reward) - 1,
        "success": episode.success,
        "terminated": float(episode.terminated),
    }
