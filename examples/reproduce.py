"""A small student of many tasks, from nothing to files with cards, in one command that goes on where it was stopped.

python examples/reproduce.py --smoke                     # every stage at toy size, in a minute or two
python examples/reproduce.py --work-dir reproduce --student published.pt
python examples/reproduce.py --work-dir reproduce --only teachers

Stages: teachers learn by acting, one for each body whose tasks share it and one for each other task; their replay,
noisy episodes of theirs and, for all other tasks, the planned play of a published student become the data; a student of
1M parameters is distilled from all teachers, and again on states that it visits itself; the round that scores best on
seeds of its own is evaluated and quantised, the files get their cards, and the student is compared with its copies.
Without --student the student begins from random weights, and the tasks without a teacher have random play.

The plan is printed first: every command as it can be typed, hours on this machine and disk. A step that is done is
skipped; one that was killed is continued by its own command. What commands print is in WORK_DIR/logs, the hours of each
stage over all attempts are in WORK_DIR/hours.json, and which round was chosen in WORK_DIR/chosen.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from reproduce_estimate import estimate
from reproduce_scale import FULL, SMOKE, Scale
from reproduce_steps import LATER, STAGES, WAYS, Origin, Step, selection, steps_of

from tdmpc2.checkpoints.shipped import find
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.entries import check_entries, nothing_or, number, record, text, whole
from tdmpc2.support.files import free_disk, json_text, locked, read_json, size_text, write_text
from tdmpc2.support.runtime import processor_name, usable_cores

ROOT = Path(__file__).resolve().parent.parent
_RECORD = {"command": text(r"(?s).{1,100000}"), "seconds": number(0)}
_SPENT = {"seconds": number(0)}
_CHOSEN = {"round": whole(), "scores": record()}
_RESULTS = {"normalized_score": number()}
#: Seconds between notes of how long a command has been running; a kill forgets no more.
_NOTE_EVERY = 5.0
_BEGUN = {"commit": nothing_or(text(r"[0-9a-f]{40,64}")), "processor": text().optional}
_CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
#: Loaded once by the process that starts the commands, so that each of them begins at once.
_LOADED = ("__main__", "torch._dynamo", "tdmpc2.commands.hydra_app", "tdmpc2.training.online", "tdmpc2.studies.heldout")


def run_command(words: Sequence[str], log: str) -> None:
    """Run a command of the project in this process, which was made for it and ends with the one that made it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing goes on training without its maker
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    name, *rest = words
    sys.argv = [f"tdmpc2 {name}", *rest]
    import_module(f"tdmpc2.commands.{name}").main(rest)


class Pipeline:
    """The steps of a working directory, with a record of each that is done.

    Args:
        work: the directory.
        scale: sizes.
        student: checkpoint that the student begins with.
        origin: where the directory was begun.
    """

    def __init__(self, work: Path, scale: Scale, student: str | None, origin: Origin) -> None:
        self.work, self.scale = work, scale
        self._student, self._origin = student, origin

    @property
    def steps(self) -> list[Step]:
        """All steps, those that need the chosen round with its files as soon as it is known."""
        return steps_of(self.scale, str(self.work), self._student, self._origin, self.chosen())

    def chosen(self) -> int | None:
        """Tell which round of the student was chosen; None: not yet."""
        path = self.work / "chosen.json"
        if not path.exists():
            return None
        found = check_entries(str(path), read_json(path), _CHOSEN, "delete it to choose again")["round"]
        if found > self.scale.rounds:
            raise ValueError(
                f"{path}: there is no round {found}, only 0 to {self.scale.rounds}: delete it to choose again"
            )
        return int(found)

    def choose(self) -> None:
        """Choose the round with the best mean of its planned score and its policy's, once all have been scored."""
        own = [step for step in self.steps if step.name.startswith("select-")]
        if self.chosen() is not None or not all(map(self.is_done, own)):
            return
        scores = {tried: self._scores(tried) for tried in range(self.scale.rounds + 1)}
        best = max(scores, key=lambda tried: sum(scores[tried].values()))
        kept = {"round": best, "scores": {str(tried): found for tried, found in scores.items()}}
        write_text(self.work / "chosen.json", json_text(kept) + "\n")
        print(f"\nRound {best} of the student is taken, which has the best mean of both scores on selection seeds:")
        for tried, found in scores.items():
            print(f"  round {tried}: " + ", ".join(f"{score:.2f} {way}" for way, score in found.items()), flush=True)

    def _scores(self, tried: int) -> dict[str, float]:
        found = {}
        for way in WAYS:
            path = Path(selection(str(self.work), tried, way), "results.json")
            found[way] = float(check_entries(str(path), read_json(path), _RESULTS, others=True)["normalized_score"])
        return found

    def record(self, step: Step) -> Path:
        """The file that says that a step is done."""
        return self.work / "done" / f"{step.name}.json"

    def is_done(self, step: Step) -> bool:
        """Tell by its record if a step is done.

        Raises:
            ValueError: it was done by another command.
        """
        path = self.record(step)
        if not path.exists():
            return False
        found = check_entries(str(path), read_json(path), _RECORD, "delete it to do the step again")
        if found["command"] != step.line:
            raise ValueError(f"{path} is of another command, so that {self.work} holds other results: set --work-dir")
        return True

    def run(self, step: Step) -> None:
        """Run a step whose record is not there, and write the record.

        Raises:
            ValueError: the command failed; the message has the end of what it printed.
        """
        log = self.work / "logs" / f"{step.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        if step.begins_anew is not None:  # half an evaluation is not continued, and its directory would not be taken
            shutil.rmtree(step.begins_anew, ignore_errors=True)
        print(f"\n$ {step.line}  >> {log}", flush=True)
        before, start = self.spent(step), time.monotonic()

        def note() -> float:
            seconds = before + time.monotonic() - start
            write_text(self._spent_file(step), json_text({"seconds": seconds}) + "\n")
            return seconds

        if not step.is_there():
            process = _CONTEXT.Process(target=run_command, args=(step.words, str(log)))
            process.start()
            while process.is_alive():
                process.join(_NOTE_EVERY)
                note()
            if process.exitcode:
                tail = log.read_text(errors="replace").strip().splitlines()[-6:] if log.exists() else []
                raise ValueError(f"{step.name} ended with {process.exitcode}; the end of {log}:\n" + "\n".join(tail))
        seconds = note()
        write_text(self.record(step), json_text({"command": step.line, "seconds": seconds}) + "\n")
        print(f"  {step.name}: {seconds:.0f} s", flush=True)

    def _spent_file(self, step: Step) -> Path:
        return self.work / "spent" / f"{step.name}.json"

    def spent(self, step: Step) -> float:
        """Tell the seconds that a step has taken so far, over all attempts."""
        path = self._spent_file(step)
        if not path.exists():
            return 0.0
        return float(check_entries(str(path), read_json(path), _SPENT, "delete it to count from 0")["seconds"])

    def hours(self) -> dict[str, float]:
        """Add up the hours of each stage, over all attempts of its steps."""
        return {stage: sum(self.spent(step) for step in self.steps if step.stage == stage) / 3600 for stage in STAGES}


def origin_of(work: Path) -> Origin:
    """Tell where a working directory was begun, which is here if it has no record of it yet.

    Cards name this place, wherever and with how many cores the work goes on.
    """
    path = work / "begun.json"
    here = {"processor": f"{processor_name()}, {usable_cores()} cores"}
    if not path.exists():
        return Origin(**here, commit=_commit())
    begun = check_entries(str(path), read_json(path), _BEGUN, "delete it, and the card steps in done")
    return Origin(**{**here, **begun})


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def print_plan(pipeline: Pipeline, wanted: Sequence[Step]) -> None:
    """Print every step, with the hours and the disk that those to do are expected to take."""
    hours, size = estimate(pipeline.scale, [step for step in wanted if not pipeline.is_done(step)])
    total = 0.0
    for step in wanted:
        done = pipeline.is_done(step)
        total += 0 if done else hours[step.name]
        print(f"{step.stage:<11} {'done' if done else f'{hours[step.name]:6.2f} h':>9}  {step.line}")
    if pipeline.chosen() is None:
        print(f"Later steps name round {pipeline.scale.rounds} of the student; they will take the one that scores best")
    print(
        f"{len(wanted)} steps, {total:.2f} hours by a short timing of an update, plans, a policy and a step of the "
        f"simulator (updates timed without teachers), {size_text(size)} of disk; "
        f"{size_text(free_disk(pipeline.work))} are free"
    )


def print_hours(pipeline: Pipeline) -> None:
    """Print the hours of each stage, and write them beside the results."""
    hours = pipeline.hours()
    write_text(pipeline.work / "hours.json", json_text(hours) + "\n")
    found = ", ".join(f"{stage} {spent:.2f}" for stage, spent in hours.items())
    print(f"\nHours by stage, over all attempts: {found}; {sum(hours.values()):.2f} in all")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", default="reproduce", help="directory of everything (default: %(default)s)")
    parser.add_argument("--student", help="checkpoint of all tasks to begin with, such as the published one")
    parser.add_argument("--only", choices=STAGES, help="this stage alone")
    parser.add_argument("--smoke", action="store_true", help="all stages at toy size")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop; nothing is written to WORK_DIR")
    args = parser.parse_args(argv)
    if args.student is not None and (shipped := find(args.student)):
        args.student = str(shipped)
    for name, path in (("--work-dir", args.work_dir), ("--student", args.student)):
        if path is not None and not re.fullmatch(r"[\w./:@+-]+", path):
            raise ValueError(f"{name} {path}: a name without spaces and other signs is needed, for the command lines")
    if args.student is not None and not Path(args.student).is_file():
        raise ValueError(f"--student {args.student} does not exist: README.md says where the published one is")
    work = Path(args.work_dir)
    origin = origin_of(work)
    pipeline = Pipeline(work, SMOKE if args.smoke else FULL, args.student, origin)

    def wanted() -> list[Step]:
        return [step for step in pipeline.steps if args.only in (None, step.stage)]

    if args.plan:
        print_plan(pipeline, wanted())
        return
    with locked(work / ".lock", f"Another process is at work in {work}: wait for it, or set --work-dir"):
        pipeline.choose()
        print_plan(pipeline, wanted())
        if not (work / "begun.json").exists():
            write_text(work / "begun.json", json_text(origin._asdict()) + "\n")
        _CONTEXT.set_forkserver_preload(list(_LOADED))
        while (step := next((step for step in wanted() if not pipeline.is_done(step)), None)) is not None:
            if step.stage in LATER and pipeline.chosen() is None:
                raise ValueError(
                    f"--only {args.only}: no round of the student is chosen yet, run --only student before"
                )
            pipeline.run(step)
            pipeline.choose()
        print_hours(pipeline)
        if all(map(pipeline.is_done, pipeline.steps)):
            print(f"All {len(pipeline.steps)} steps are done; the files with their cards are in {work / 'models'}")


if __name__ == "__main__":
    main()
