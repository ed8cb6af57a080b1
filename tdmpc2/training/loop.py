"""The frame of a training run: how it begins, what happens between two updates, how it ends and goes on.

Offline training and learning online share it. Each brings its own data::

    with Run.open(cfg, teacher_cfg, group, evaluate) as run:
        ...                                           # open the data, or build environments and a replay buffer
        run.attach("replay", buffer)                  # whatever else has to be saved and continued
        run.start("1,200 episodes on cpu")
        for step, batch in run.batches(draw):         # or: for step in run.steps():
            run.after_update(step, run.update(batch))

A step is an update offline, and a step of the environments online, where there may be several updates in one or none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from time import monotonic

from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.batches import Batches
from tdmpc2.distributed import ProcessGroup
from tdmpc2.support.mapped_files import FileChangedError
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.tracking.logger import Logger
from tdmpc2.tracking.pace import Activity
from tdmpc2.training import run_dir, run_record
from tdmpc2.training.callbacks import Callback
from tdmpc2.training.divergence import Diagnosis, diverged
from tdmpc2.training.guards import STOPPED, FiniteGuard, StopRequest, stop_on_signal
from tdmpc2.training.headline import headline
from tdmpc2.training.resuming import Every, Resumed, Stateful, resume_together
from tdmpc2.training.saving import Saving
from tdmpc2.training.saving_together import forget_former
from tdmpc2.training.scoring import Evaluator, score, upload
from tdmpc2.training.stopping import Stopping
from tdmpc2.training.teacher import asked_live, find_teacher
from tdmpc2.training.tuning import load_start


class Run:
    """A training run: its agent, and the cadence of logging, saving, evaluating and stopping.

    Attributes:
        cfg: the student.
        teacher: the teacher's file, or those of teachers of single tasks, if there are any.
        live_teacher: the teacher as an agent, or agents by task, unless cached outputs take its place entirely.
        agent: what is trained, with its state from the last time.
        new_task: the task that is appended to those of the file that the run starts from, if one is.
        group: the processes that train together.
        resumed: where the run stands.
        ended: a callback has ended it.
    """

    @classmethod
    @contextmanager
    def open(
        cls,
        cfg: Config,
        teacher_cfg: Config | None,
        group: ProcessGroup,
        evaluate: Evaluator,
        data: Mapping[str, str] | None = None,
        stride: int = 1,
        evaluate_first: bool = False,
    ) -> Iterator[Run]:
        """Lock the run's directory, listen for signals, build the agent and bring it to where the run stands.

        Nothing is written to the directory before :meth:`start`.

        Args:
            cfg: the student.
            teacher_cfg: names the teacher's checkpoint; its architecture is the file's own.
            group: the processes that train together.
            evaluate: plays the agent for a score, as :func:`tdmpc2.play.evaluation.evaluate` does.
            data: identity of stored data that the run learns from; it may not change when the run is continued.
            stride: steps that the loop takes at a time, such as the number of environments.
            evaluate_first: evaluate before the first step, too.

        Raises:
            ValueError: a file cannot be read, or the directory belongs to another run or process.
            SystemExit: with code :data:`~tdmpc2.training.guards.STOPPED` after SIGTERM or SIGINT, when all is saved.
        """
        with (
            run_dir.lock(cfg.run_dir) if group.main else nullcontext(),
            stop_on_signal(launched=group.world_size > 1) as stop,
            ExitStack() as stack,
        ):
            stop.at_once = True  # whatever is made before the first update survives a kill
            yield cls(cfg, teacher_cfg, group, evaluate, data, stride, evaluate_first, stop, stack)

    def __init__(
        self,
        cfg: Config,
        teacher_cfg: Config | None,
        group: ProcessGroup,
        evaluate: Evaluator,
        data: Mapping[str, str] | None,
        stride: int,
        evaluate_first: bool,
        stop: StopRequest,
        stack: ExitStack,
    ) -> None:
        self.cfg, self.group = cfg, group
        self._teacher_cfg, self._play, self._stride = teacher_cfg, evaluate, stride
        self._stop, self._stack = stop, stack
        self._log_now = Every(cfg.log_freq, stride)
        self._save_now = Every(cfg.save_freq, stride)
        self._evaluate_now = Every(cfg.eval_freq, stride, evaluate_first)
        self._stopping = Stopping(group, stop, stride)
        self._threads = set_num_threads(cfg.num_threads)
        self._new_directory = not cfg.run_dir.exists()

        self.teacher = find_teacher(cfg, teacher_cfg)
        live = self.teacher is not None and asked_live(cfg)
        self.live_teacher = self.teacher.load(cfg.device) if self.teacher and live else None
        self.agent = TDMPC2(cfg, self.live_teacher, group)
        self.new_task = load_start(self.agent, cfg)
        checksum = self.teacher.sha256 if self.teacher else None
        self.resumed: Resumed = resume_together(group, self.agent, cfg, checksum, data, self._evaluate_now)

        self._saving = Saving(self.agent, cfg, group, self.resumed)
        self._guard = FiniteGuard(self.agent.device)
        self._step = self.resumed.step
        self._updated = self.ended = False
        self._batches: Batches | None = None
        self._diagnose: Callable[[int], Diagnosis] | None = None
        self._activity: Callable[[float], Activity] | None = None

    @property
    def model_path(self) -> Path:
        """The deployable checkpoint, ``<run_dir>/model.pt``."""
        return self.cfg.run_dir / "model.pt"

    def finished(self, cut_short: bool = False) -> bool:
        """Tell whether nothing is left to do, in which case one line says so.

        Args:
            cut_short: a signal interrupted the last step, and some of its updates are still to be made.
        """
        left = cut_short or self.resumed.step < self.cfg.steps or self.resumed.evaluation_due
        if not left:
            fixed = run_record.ends_with_steps(self.cfg, self.teacher is not None)
            more = "" if fixed else "; set steps higher to go on"
            print(f"{self.cfg.run_dir} is already trained for {self.resumed.step:,} steps{more}")
        return not left

    def attach(self, name: str, part: Stateful) -> None:
        """Save and continue a part with the run, as :meth:`~tdmpc2.training.saving.Saving.attach` does."""
        self._saving.attach(name, part)

    def tell(self, callbacks: Sequence[Callback]) -> None:
        """Tell callbacks what happens, and end when one of them asks for it.

        Raises:
            ValueError: one lacks a method.
        """
        if len(found := set(self.group.collect(len(callbacks)))) > 1:  # they would ask each other at different times
            raise ValueError(
                f"callbacks: the processes have {min(found)} to {max(found)} of them: give every process the same, "
                "which may do nothing where the process is not the main one"
            )
        self._stopping.listen(callbacks)

    def start(
        self,
        source: str,
        *notes: str,
        diagnose: Callable[[int], Diagnosis] | None = None,
        activity: Callable[[float], Activity] | None = None,
        in_stack: bool = False,
    ) -> None:
        """Claim the directory and open the log; from here on a signal saves before it stops.

        Args:
            source: what the run learns from, for its first line.
            notes: more lines; empty ones are left out.
            diagnose: says of a step what its batch was and what to do, for the message of a run that diverged.
            activity: says in every training line what the time since the last one was spent on; it is called with the
                seconds of that time that do not count, such as those of an evaluation.
            in_stack: the agent is one of several that learn in one batch (:mod:`tdmpc2.training.specialists`): its
                lines go to its own ``train.log`` only, and the caller makes the updates.
        """
        cfg, group, resumed = self.cfg, self.group, self.resumed
        self._diagnose, self._activity = diagnose, activity
        self._stop.at_once = False
        # A run.json without a save is of a start that was killed; with save_agent=false it may be of one that ended.
        begun_before = cfg.save_agent and (cfg.run_dir / "run.json").exists()
        if group.main:
            run_record.claim(cfg.run_dir, resumed.record)
            if not in_stack:
                forget_former(cfg.run_dir)
            if self._new_directory:  # one that was there is locked from the beginning
                self._stack.enter_context(run_dir.hold(cfg.run_dir))
        self._logger = self._stack.enter_context(
            Logger(
                cfg if group.main else cfg.replace(save_csv=False, tracker=()),
                teacher=self.agent.teacher.cfg if self.agent.teacher else self._teacher_cfg,
                total_steps=cfg.steps,
                start_step=resumed.step,
                begun_before=begun_before,
                run_id=resumed.wandb_id,
                evaluate_again=resumed.evaluation_due,
                wall_seconds=resumed.wall_seconds,
                stream=self._stack.enter_context(Path(os.devnull).open("w")) if in_stack else None,  # noqa: SIM115
            )
        )
        self._logger.message(headline(self.agent, self.teacher, source, self._threads, resumed.step))
        compiled = "" if in_stack else self.agent.compile_update()
        for line in filter(None, (resumed.note, *notes, compiled)):
            self._logger.message(line)

    def told_to_stop(self, number: int) -> bool:
        """Tell whether the run was told to stop, which it does after the step: long ones may end early.

        Args:
            number: of the update that was made; several processes ask one another after every tenth.
        """
        return self._stopping.after_update(number)

    def steps(self, again: bool = False) -> Iterator[int]:
        """Yield the number of each step to take, from 1; first of all the evaluation that is due is made.

        Args:
            again: the last step of the time before was cut short, and its number comes once more.
        """
        if again:
            yield self._step
        elif self.resumed.evaluation_due:
            self.evaluate(self.resumed.step)
        while self._step < self.cfg.steps and not self.ended:
            self._step += self._stride
            yield self._step
        if self.cfg.save_agent and not self.ended:
            self._logger.message(f"Trained for {self.cfg.steps:,} steps: {self.model_path}")

    def batches(self, draw: Callable[[int], Batch], ahead: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yield each step with its batch, on the agent's device.

        Args:
            draw: step -> batch, a pure function: it may be called early and in a thread.
            ahead: batches that are drawn ahead.
        """
        numbers = range(self.resumed.step + 1, self.cfg.steps + 1)
        self._batches = Batches(draw, numbers, self.agent.device, ahead)
        with closing(iter(self._batches)) as upcoming:
            for step in self.steps():
                with self.saved_before_changed_files():
                    batch = next(upcoming)
                yield step, batch

    @contextmanager
    def saved_before_changed_files(self) -> Iterator[None]:
        """Save what was learned before a file of the data that changed or is damaged ends the run."""
        try:
            yield
        except FileChangedError:
            self._save_before(self._step)
            raise

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step; remember the first one with a loss or gradient that is not finite."""
        compiling, began = self.agent.update_compiled and not self._updated, monotonic()
        # Minutes in which there is nothing to save, unless steps were taken before the first update.
        self._stop.at_once = compiling and self._step - self._stride <= self._saving.step
        if self._stop.at_once and self._stop:
            raise SystemExit(STOPPED)
        metrics = self.updated(self.agent.update(batch))
        if compiling:
            self._logger.message(f"Compiled in {monotonic() - began:.0f} s")
        return metrics

    def updated(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Do what follows an update of the agent, which another may have made with those of other runs."""
        self._stop.at_once, self._updated = False, True
        self._saving.updated()
        self._guard.watch(self._step, metrics)
        if self._stopping.callbacks:
            self._stopping.callbacks.updated(self._step, metrics)
        return metrics

    def after_update(self, step: int, metrics: Mapping[str, Tensor] | None = None) -> None:
        """Do what is due after a step: log, save, stop, evaluate.

        Args:
            step: the step that was taken.
            metrics: those of its (last) update; None if it had none, and then nothing is logged.

        Raises:
            ValueError: the training diverged.
            SystemExit: a signal told it to stop, and it has saved.
        """
        stopping = self.stopping(step)  # asked once, since a signal may come at any moment below
        evaluating = self.settle(step, metrics, stopping)
        if stopping:
            self.end(step)
        elif evaluating:
            self.evaluate(step)

    def stopping(self, step: int) -> bool:
        """Tell whether the run is to end after a step."""
        return self._stopping.after_step(step)

    def saves_after(self, step: int) -> bool:
        """Tell whether everything is saved after a step, whoever asks the run to stop."""
        return step >= self.cfg.steps or self._evaluate_now.due(step) or self._save_now.due(step)

    def settle(self, step: int, metrics: Mapping[str, Tensor] | None, stopping: bool) -> bool:
        """Log and save what is due after a step; returns whether an evaluation is due as well.

        Raises:
            ValueError: the training diverged.
        """
        last = step >= self.cfg.steps
        saving = stopping or self.saves_after(step)
        logging = metrics is not None and (last or self._log_now.due(step))
        if logging:
            self._log(step, metrics or {})
        if logging or saving:
            self.check_finite()
        if saving:
            self._saving.save(step, self._logger)
            if not stopping and self.cfg.save_agent and self.group.main:
                upload(self.cfg, self._logger, "model.pt", f"step-{step}")
        return self._evaluate_now.due(step)

    def log_episodes(self, step: int, episodes: Sequence[Mapping[str, str | float]]) -> None:
        """Record episodes that ended with a step, each as its task, return, length and so on."""
        if episodes:
            self._logger.log_episodes(step, episodes)
            self._stopping.callbacks.played(step, episodes)

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._logger.message(text)

    def save(self, step: int) -> None:
        """Save at a step that was the last to be complete, before an error ends the run."""
        self.check_finite()
        self._saving.save(step, self._logger)

    def _log(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        waited = self._batches.take_wait(self._logger.paused) if self._batches else None
        activity = self._activity(self._logger.paused) if self._activity else None
        self._logger.log(step, metrics, data_wait=waited, activity=activity)

    def check_finite(self) -> None:
        """Raise ``ValueError``, saying what to do, if an update so far had a loss or gradient that is not finite."""
        bad = self._guard.first_bad_step()
        if bad is None:
            return
        saved = self._saving.step
        good = f"{self.model_path} is of step {saved:,}, before it" if saved else "Nothing was saved before"
        text = diverged(bad, good, self._diagnose(bad) if self._diagnose else Diagnosis())
        self._logger.alert("Training diverged", text)
        raise ValueError(text)

    def _save_before(self, step: int) -> None:
        """Save what was learned before a step that cannot be taken, unless nothing was or it is saved already."""
        done = step - self._stride
        if done > self._saving.step and self._updated:
            self.save(done)

    def end(self, step: int) -> None:
        """End the run after a step that is saved: with the exit code of a signal, or quietly for a callback.

        Raises:
            SystemExit: it was a signal.
        """
        saved = ", everything is saved; the same command goes on" if self.cfg.save_agent else ""
        saved = ", before anything was learned: nothing is saved" if step == 0 else saved
        self._logger.message(f"Stopped by {self._stopping.by()} at step {step:,}{saved}")
        if self._stopping.by_signal:
            raise SystemExit(STOPPED)
        self.ended = True

    def evaluate(self, step: int) -> None:
        """Play the agent for a score, which belongs to a step that is saved."""

        def leave_if_told() -> None:
            if self._stopping.leave():
                self.end(step)

        # Several processes gather their results together, so that none of them may leave on its own.
        each_step = leave_if_told if self.group.world_size == 1 else None
        with self._logger.pause(), self._saving.evaluated_weights():
            result = score(self._play, self.agent, self.cfg, self._logger, step, each_step)
        if self._stopping.callbacks and result is not None:
            self._stopping.callbacks.evaluated(step, result)
            if step < self.cfg.steps and self._stopping.ask():
                self.end(step)
