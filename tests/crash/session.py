"""Rounds of disturbances for every command, and the table of their outcomes."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.comparing import content, differences
from tests.crash.running import FullDisk, Kill, Outcome, run
from tests.crash.scenarios import ONLINE, SCENARIOS, Scenario
from tests.helpers.forks import ForkServer, fork_server

_MOST = 4  # disturbances in a round
_FULL_DISKS, _FROM_START = 0.25, 0.2  # shares of the disturbances, and of the kills


@dataclass
class Tally:
    """The number of disturbances of one command, and what went wrong."""

    name: str
    kills: int = 0
    full_disks: int = 0
    continued: int = 0  # starts that followed a disturbance
    rounds: int = 0  # that ended and were compared
    problems: list[str] = field(default_factory=list)


class Command:
    """A command with the files of its undisturbed run."""

    def __init__(self, name: str, root: Path, server: ForkServer) -> None:
        self._server = server
        self.scenario: Scenario = SCENARIOS[name]
        self.tally = Tally(name)
        self._root, self._begun = root / name, 0
        self._prepared = self._root / "prepared"
        self._prepared.mkdir(parents=True)
        self.scenario.prepare(self._prepared)
        undisturbed = self._root / "undisturbed"
        shutil.copytree(self._prepared, undisturbed)
        outcome = run(self._server, self.scenario.command, undisturbed)
        if outcome.code != 0:
            raise RuntimeError(f"{name} fails undisturbed:\n{outcome.output}")
        self.work, self.seconds = outcome.work, outcome.seconds
        self._expected: dict[str, Any] = content(undisturbed)
        before, after = sizes(self._prepared), sizes(undisturbed)
        self._written = [size for name, size in after.items() if size > before.get(name, 0)]
        print(f"{name}: {self.seconds:.1f} s undisturbed, {self.work:.2f} s of it work", flush=True)

    def round(self, draw: random.Random, most_kills: int) -> None:
        """Disturb the command a few times, let it finish, and compare its files."""
        tally, name = self.tally, self.tally.name
        self._begun += 1
        directory = self._root / f"round-{self._begun}"
        shutil.copytree(self._prepared, directory)
        done: list[str] = []
        ended = False
        for disturbance in self._disturbances(draw, most_kills):
            outcome = run(self._server, self.scenario.command, directory, disturbance)
            tally.continued += bool(done)
            if outcome.code is None:
                tally.kills += 1
            elif isinstance(disturbance, FullDisk):
                tally.full_disks += 1
            else:
                done.append("ended before it was killed")
                ended = self._is_good(outcome, done)
                break
            done.append(str(disturbance))
            print(f"{name}: {disturbance}" + ("" if outcome.code is None else f", code {outcome.code}"), flush=True)
            if outcome.code not in (None, 0, 2) or "Traceback (most recent call last)" in outcome.output:
                tally.problems.append(f"{name}: code {outcome.code} after {'; '.join(done)}: {_last(outcome)}")
        if not ended:
            tally.continued += bool(done)
            if not self._is_good(run(self._server, self.scenario.command, directory), done):
                return
        tally.rounds += 1
        if lines := differences(self._expected, content(directory)):
            tally.problems.append(f"{name}: {', '.join(lines)} after {'; '.join(done)}: see {directory}")
        else:
            shutil.rmtree(directory)

    def _disturbances(self, draw: random.Random, most_kills: int) -> list[Kill | FullDisk]:
        chosen: list[Kill | FullDisk] = []
        for _ in range(draw.randint(1, min(_MOST, most_kills))):
            if draw.random() < _FULL_DISKS and sys.platform != "win32":
                chosen.append(FullDisk(int(draw.random() * draw.choice(self._written))))
            elif draw.random() < _FROM_START:
                chosen.append(Kill(draw.uniform(0, self.seconds), from_start=True))
            else:
                chosen.append(Kill(draw.uniform(0, self.work)))
        return chosen

    def _is_good(self, outcome: Outcome, done: list[str]) -> bool:
        """Tell if the command finished its work, or refused to start because it was done."""
        refused = outcome.code == 2 and bool(self.scenario.ended) and self.scenario.ended in _last(outcome)
        good = outcome.code == 0 or refused
        if not good:
            text = f"{self.tally.name}: code {outcome.code} when it was to go on after {'; '.join(done)}: "
            self.tally.problems.append(text + _last(outcome))
        return good


def crash(
    server: ForkServer,
    names: Sequence[str],
    kills: int,
    seed: int,
    root: Path,
    seconds: float = float("inf"),
    each: bool = False,
) -> list[Tally]:
    """Disturb commands in turn until there were so many kills in all, or the time is over.

    Args:
        server: what the commands are forked from.
        names: of :data:`~tests.crash.scenarios.SCENARIOS`.
        kills: that many, and a full disk now and then.
        seed: of the moments and sizes.
        root: an empty directory; rounds with differences are left there.
        seconds: no round is begun after these.
        each: kill every one of them so often.
    """
    end, draw = time.monotonic() + seconds, random.Random(seed)
    commands = [Command(name, root, server) for name in names]

    def left(command: Command) -> int:
        return kills - (command.tally.kills if each else sum(one.tally.kills for one in commands))

    while (undone := [command for command in commands if left(command) > 0]) and time.monotonic() < end:
        # Each command gets its turn, so that all have been killed about as often.
        chosen = min(undone, key=lambda command: command.tally.kills + command.tally.full_disks)
        chosen.round(draw, left(chosen))
    return [command.tally for command in commands]


def main() -> None:
    """Run the command line; exits with code 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills in all, or with --each of each (default: 100)")
    parser.add_argument("--each", action="store_true", help="kill each command so often")
    parser.add_argument("--seconds", type=float, default=3600, help="time limit (default: 3600)")
    parser.add_argument(
        "--commands", default=",".join(SCENARIOS), help="which; online-all is those that learn online (default: all)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the kills; drawn and printed by default")
    args = parser.parse_args()
    names = args.commands.replace("online-all", ",".join(ONLINE)).split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"--commands: {', '.join(unknown)} not among {', '.join(SCENARIOS)}")
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="tdmpc2-crash-"))
    with fork_server("matplotlib.figure") as server:
        tallies = crash(server, names, args.kills, seed, root, args.seconds, args.each)
        problems = [problem for tally in tallies for problem in tally.problems]
        print(table(tallies), *problems, sep="\n", flush=True)
    if not problems:
        shutil.rmtree(root)
    sys.exit(1 if problems else 0)


def table(tallies: Sequence[Tally]) -> str:
    """Format the outcomes, a line for each command and one for all."""
    rows = [(t.name, t.kills, t.full_disks, t.continued, t.rounds, len(t.problems)) for t in tallies]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))  # type: ignore[arg-type]
    head = ("command", "kills", "full disks", "continued", "compared", "differences")
    lines = [f"{head[0]:10}" + "".join(f"{text:>13}" for text in head[1:])]
    lines += [f"{row[0]:10}" + "".join(f"{value:13}" for value in row[1:]) for row in rows]
    return "\n".join(lines)


def sizes(directory: Path) -> dict[str, int]:
    """List the bytes of the files of a directory, in the order of their names."""
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: paths[name].stat().st_size for name in sorted(paths)}


def _last(outcome: Outcome) -> str:
    """Return the last line that was printed."""
    lines = outcome.output.strip().splitlines()
    return lines[-1][:300] if lines else "nothing printed"
