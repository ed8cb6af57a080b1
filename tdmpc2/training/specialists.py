"""Many runs that learn online together, each an agent of its own: one update and one plan for all of them.

Every run has its directory, replay, scale, clipping and random numbers, as if it learned alone, and is left as one that
did: ``train.py`` with its keys would go on with it. Runs stand at the same step at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.distributed import ProcessGroup
from tdmpc2.play.environment_failed import EnvironmentFailed
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.explorer import Explorer
from tdmpc2.play.rollout import Floats
from tdmpc2.support.mapped_files import FileChangedError
from tdmpc2.tracking.progress import Progress
from tdmpc2.training import run_dir
from tdmpc2.training.demonstrations import demonstrations_record
from tdmpc2.training.guards import stop_on_signal
from tdmpc2.training.learner import cut_short
from tdmpc2.training.loop import Run
from tdmpc2.training.online import Loop, blaming_updates
from tdmpc2.training.preflight import preflight
from tdmpc2.training.saving_together import saved_together, undo_half_saved
from tdmpc2.training.schedule import Schedule
from tdmpc2.training.stacked_agents import StackedAgents, check_stackable


def train_specialists(cfgs: Sequence[Config]) -> list[Path]:
    """Learn by acting, all runs together, for ``steps`` steps each; continues them if they have been begun together.

    Args:
        cfgs: one for each run, which differ in tasks, seed and directory only.

    Returns:
        The deployable checkpoint of each, ``<run_dir>/model.pt``.

    Raises:
        ValueError: runs do not fit together or stand at different steps, or see
            :func:`~tdmpc2.training.online.train_online`.
        SystemExit: with code :data:`~tdmpc2.training.guards.STOPPED` after SIGTERM or SIGINT, when all are saved.
    """
    check_together(cfgs)
    for cfg in cfgs:
        preflight(cfg, None)
    with stop_on_signal() as stop, ExitStack() as stack:
        stop.at_once = True  # whatever is made before the first turn survives a kill
        for cfg in cfgs:
            stack.enter_context(run_dir.lock(cfg.run_dir))
        if undo_half_saved([cfg.run_dir for cfg in cfgs]):
            print("Killed while it saved: all runs go on from the save before", flush=True)
        runs = [
            Run(cfg, None, ProcessGroup(), evaluate, demonstrations_record(cfg), len(cfg.envs), True, stop, stack)
            for cfg in cfgs
        ]
        steps = [run.resumed.step for run in runs]
        if min(steps) < max(steps):
            behind, ahead = (runs[steps.index(step)] for step in (min(steps), max(steps)))
            raise ValueError(
                f"{behind.cfg.run_dir} is at step {min(steps):,} and {ahead.cfg.run_dir} at {max(steps):,}: runs of a "
                "stack go on together. Bring those behind there by train.py, or name another folder"
            )
        if not all(run.finished(cut_short(run.resumed.parts)) for run in runs):
            explorers = [stack.enter_context(Explorer(run.cfg, run.agent)) for run in runs]
            loops = [Loop(run, explorer, in_stack=True) for run, explorer in zip(runs, explorers, strict=True)]
            with Progress(cfgs[0].steps - steps[0], f"{len(runs)} specialists", unit="steps of each") as bar:
                together = Together(loops)
                for _ in together.turns():
                    bar.update(len(cfgs[0].envs), together.newest())
        return [run.model_path for run in runs]


def check_together(cfgs: Sequence[Config]) -> None:
    """Raise ``ValueError``, saying what to do, for runs that cannot learn together."""
    if any(cfg.dry_run for cfg in cfgs):
        raise ValueError("dry_run=true estimates one run: name it to train.py with the keys of a specialist")
    for cfg in cfgs:
        check_stackable(cfg, cfgs[0])
        if cfg.mode != "online":
            raise ValueError(f"mode={cfg.mode}: specialists learn online, by acting: set mode=online")
        if cfg.steps != cfgs[0].steps or Schedule.of(cfg) != Schedule.of(cfgs[0]):
            raise ValueError(
                f"{cfg.run_dir} has steps={cfg.steps:,}, seed_steps={cfg.seed_steps:,}, utd={cfg.utd:g} and "
                f"{len(cfg.envs)} environments, unlike {cfgs[0].run_dir}: runs of a stack take every step together"
            )
    directories = [cfg.run_dir.absolute() for cfg in cfgs]
    if len(set(directories)) < len(directories):
        raise ValueError(f"Two of the runs are to be in {cfgs[0].run_dir}: set work_dir for each")


class Together:
    """The loops of runs that learn together.

    Args:
        loops: at the same step.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._loops, self._runs = list(loops), [loop.run for loop in loops]
        self._learners = [loop.learner for loop in loops]
        self._explorers = [loop.explorer for loop in loops]
        self._dirs = [run.cfg.run_dir for run in self._runs if run.cfg.save_agent]
        self.stack = StackedAgents([run.agent for run in self._runs])
        # Kernels plan for one agent at a time, and faster than all together; a GPU has no time for so little.
        # Nor do plans of unequally many iterations, which a task of 20 actions or more has, go together.
        iterations = {explorer.player.cfg.plan_iterations for explorer in self._explorers}
        self._plans_together = self._runs[0].agent.device.type != "cpu" and len(iterations) == 1
        self._returns: dict[int, float] = {}  # of each run's newest episode

    def newest(self) -> str:
        """Say how the newest episodes went, as the end of a line; nothing before there are any."""
        found = self._returns.values()
        return f"mean return {sum(found) / len(found):.4g}" if found else ""

    def turns(self) -> Iterator[int]:
        """Take one turn after another until the end: a step in all environments, and the updates due.

        Yields:
            The number of the step that was taken.
        """
        again = self._learners[0].interrupted
        for step, *_ in zip(*(run.steps(again=again) for run in self._runs), strict=True):
            if not self._learners[0].interrupted:
                with self._saving_before(step):
                    self._act(step)
            with self._timing("updating"), self._saving_at(step):
                metrics = self._update()
            self._finish(step, metrics)
            yield step

    def _act(self, step: int) -> None:
        for loop in self._loops:
            loop.begin(step)
        with self._timing("acting"):
            actions = self._choose(step)
        with self._timing("environment"):
            for explorer, own in zip(self._explorers, actions, strict=True):
                explorer.begin_step(own)  # in worker processes, all at the same time
            outcomes, failures = [], []
            for explorer, own in zip(self._explorers, actions, strict=True):
                try:
                    outcomes.append(explorer.outcomes(own))
                except EnvironmentFailed as error:
                    failures.append(error)
            if failures:
                for explorer in self._explorers:
                    explorer.undo()
                raise failures[0]
        for number, (loop, own, found) in enumerate(zip(self._loops, actions, outcomes, strict=True)):
            ended = loop.explorer.record(own, found)
            if ended:
                self._returns[number] = ended[-1].episode_return
            loop.taken(step, ended)
            loop.owe(step)

    def _choose(self, step: int) -> list[Floats]:
        random = any(loop.is_random(step) for loop in self._loops)
        if random or not (self._plans_together and self._runs[0].cfg.mpc):
            return [loop.choose(step) for loop in self._loops]
        asked = [explorer.asked() for explorer in self._explorers]
        with ExitStack() as all_runs:
            for run in self._runs:
                all_runs.enter_context(blaming_updates(run))
            plans = self.stack.plan([explorer.player for explorer in self._explorers], asked, eval_mode=False)
        actions = [plan.action.cpu().numpy() for plan in plans]
        for run in self._runs:
            run.check_finite()  # a plan may be finite, and mean nothing
        return actions

    def _update(self) -> list[Mapping[str, Tensor] | None]:
        """Make the updates that are owed, once all runs have something to learn from; a signal ends them early."""
        first, run = self._learners[0], self._runs[0]
        self._interrupt(False)
        if first.owed <= 0 or not all(learner.ready() for learner in self._learners):
            return [learner.metrics or None for learner in self._learners]
        while first.owed > 0 and not first.interrupted:
            found = self.stack.update([learner.draw() for learner in self._learners])
            for own, learner, metrics in zip(self._runs, self._learners, found, strict=True):
                learner.count(own.updated(metrics))
            self._interrupt(first.owed > 0 and run.told_to_stop(first.done))
        return [None if first.interrupted else learner.metrics for learner in self._learners]

    def _finish(self, step: int, metrics: Sequence[Mapping[str, Tensor] | None]) -> None:
        run = self._runs[0]
        for loop in self._loops:
            loop.before_saving(step)
        stopping = run.stopping(step)
        with self._saving(stopping or run.saves_after(step)):
            due = [one.settle(step, own, stopping) for one, own in zip(self._runs, metrics, strict=True)]
        if stopping:
            saved = ": all runs are saved; the same command goes on" if self._dirs else ""
            print(f"Stopped at step {step:,}{saved}", flush=True)
            run.end(step)
        for one, evaluating in zip(self._runs, due, strict=True):
            if evaluating:
                one.evaluate(step)

    # -- saving -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _saving(self, wanted: bool = True) -> Iterator[None]:
        with saved_together(self._dirs if wanted else []):
            yield

    @contextmanager
    def _saving_before(self, step: int) -> Iterator[None]:
        """Save all runs at the turn before ``step`` if an environment fails in it."""
        try:
            yield
        except EnvironmentFailed as error:
            last = step - len(self._runs[0].cfg.envs)
            if last <= 0 or not self._dirs:
                raise ValueError(f"{error} (step {step:,}){error.remedy}") from error
            self._save(last)
            goes_on = ", and the same command goes on with a new episode there" if error.remedy else ""
            raise ValueError(f"{error} (step {step:,}; what was learned before is saved{goes_on})") from error

    @contextmanager
    def _saving_at(self, step: int) -> Iterator[None]:
        """Save all runs in the middle of the updates of ``step`` if demonstrations change on disk."""
        try:
            yield
        except FileChangedError:
            self._interrupt(True)
            self._save(step)
            raise

    def _save(self, step: int) -> None:
        with self._saving():
            for run in self._runs:
                run.save(step)

    def _interrupt(self, interrupted: bool) -> None:
        for learner in self._learners:
            learner.interrupted = interrupted

    @contextmanager
    def _timing(self, activity: str) -> Iterator[None]:
        """Count the time of what all runs do together for each of them."""
        with ExitStack() as stack:
            for loop in self._loops:
                stack.enter_context(loop.clock(activity))
            yield
