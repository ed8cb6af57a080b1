"""The leaderboard as a Markdown page and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.studies.downloads import recorded
from tdmpc2.studies.leaderboard import TABLES, Entry, Gathered, Summary, last_of_each, summaries
from tdmpc2.studies.sources import SHORT
from tdmpc2.support.figures import figure_class, save_figure
from tdmpc2.support.intervals import format_interval
from tdmpc2.support.tables import markdown_table
from tdmpc2.support.text import escaped
from tdmpc2.tasks import MT30

_HEADINGS = (
    "method", "acts by", "learned from", "mean", "95 % interval", "over", "interquartile mean", "worst five",
    "parameters", "seconds an action",
)  # fmt: skip
_INTRODUCTION = """# Leaderboard

Made by `tdmpc2 leaderboard`; do not edit. A score is the return / 10, averaged over tasks. Intervals are bootstrap
intervals over episodes, or over training seeds where a source has those; `-` means that there is one number a task.
Interquartile mean and worst five are of the tasks' means, which all sources have. Rows over episodes say nothing about
how another training would end. Methods that learn a model for each task, methods that learn online and methods that see
only stored data are not the same contest: the third column tells them apart; of rows measured here
it has the evaluation, and the card of the file says what it learned from. Seconds an action are those of our own
evaluations: wall time over actions, simulation included, episodes side by side."""


def page(gathered: Gathered, folder: Path | None, figure: str | None) -> str:
    """Write the page.

    Args:
        gathered: entries and sources.
        folder: where downloaded files and their checksums are, if anywhere.
        figure: link to the figure, if there is one.
    """
    parts = [_INTRODUCTION]
    if figure:
        parts.append(f"![Means and their intervals]({figure})")
    for title, tasks in TABLES.items():
        rows = [_cells(summary) for summary in summaries(gathered.entries, tasks)]
        short = [entry for entry in gathered.entries if entry.own and not entry.has(tasks)]
        parts += [f"## {title}", markdown_table(_HEADINGS, rows) if rows else "No result has all of these tasks."]
        parts += [
            f"Not in this table: {_label(entry)}, which has {sum(task in entry.scores for task in tasks)} of them."
            for entry in short
        ]
    parts += ["## Task by task", _by_task(list(last_of_each(gathered.entries))), "## Sources"]
    parts.append(_sources(gathered, folder))
    if gathered.absent:
        names = dict.fromkeys(f"{source.method} ({source.origin})" for source in gathered.absent)
        parts.append(f"Not here: {', '.join(names)}; `tdmpc2 leaderboard --download` fetches them.")
    return "\n\n".join(parts) + "\n"


def _cells(summary: Summary) -> list[str]:
    entry = summary.entry
    others = [f"{aggregate.value:.1f}" for aggregate in summary.others] or ["-", "-"]
    return [
        f"**{escaped(entry.name)}**" if entry.own else entry.name,
        _acts(entry),
        escaped(entry.protocol),
        f"{summary.mean:.1f}",
        format_interval(summary.interval),
        entry.values if summary.interval else "-",
        *others,
        "-" if entry.parameters is None else f"{entry.parameters / 1e6:.1f}M",
        "-" if entry.seconds is None else f"{entry.seconds:.4f}",
    ]


def _by_task(entries: Sequence[Entry]) -> str:
    rows = [
        [task, *(f"{entry.scores[task].mean():.1f}" if task in entry.scores else "-" for entry in entries)]
        for task in MT30
    ]
    return markdown_table(["task", *map(_label, entries)], rows)


def _sources(gathered: Gathered, folder: Path | None) -> str:
    sums = recorded(folder) if folder else {}
    rows: dict[tuple[str, ...], None] = {}
    for source, files in gathered.files.items():
        known = [sums[name] for name in (_below(file, folder) for file in files) if name in sums]
        link = f"[{source.origin}](https://github.com/{source.origin})"
        count = f"{len(files)} files" if len(files) > 1 else files[0].name
        given = "short file of this package" if files[0].parent == SHORT else "given by hand"
        checked = "downloaded, checksums agree" if len(known) == len(files) else given
        rows[source.method, link, source.licence, count, checked] = None
    return markdown_table(["method", "repository", "licence", "read from", "state"], list(rows), numbers=False)


def _below(file: Path, folder: Path | None) -> str:
    return file.relative_to(folder).as_posix() if folder and file.is_relative_to(folder) else ""


def _acts(entry: Entry) -> str:
    return "plan" if entry.planned else "policy"


def _label(entry: Entry) -> str:
    return f"{entry.name}, {_acts(entry)}"


def draw(gathered: Gathered, path: Path) -> None:
    """Draw means and intervals of all rows, a panel for each table; a filled point plans, an empty one does not.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a file that was not drawn by this program has that name, or the disk refused.
    """
    found = {title: summaries(gathered.entries, tasks) for title, tasks in TABLES.items()}
    found = {title: rows for title, rows in found.items() if rows}
    height = 0.24 * max(map(len, found.values()), default=1) + 1.2
    figure = figure_class()(figsize=(7 * max(len(found), 1), height), layout="constrained")
    for index, (title, rows) in enumerate(found.items()):
        axes = figure.add_subplot(1, len(found), index + 1)
        for place, summary in enumerate(rows):
            colour = "tab:red" if summary.entry.own else "tab:blue"
            low, high = summary.interval or (summary.mean, summary.mean)
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            fill = colour if summary.entry.planned else "white"
            axes.plot([summary.mean], [place], "o", color=colour, markerfacecolor=fill)
        names = [f"{_label(row.entry)}: {row.entry.protocol}" for row in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=7)
        axes.set(xlim=(0, 100), xlabel="score, with 95 % interval", title=title, ylim=(len(rows) - 0.4, -0.6))
        axes.grid(axis="x", color="lightgrey", linewidth=0.5)
        axes.set_axisbelow(True)
    save_figure(figure, path)
