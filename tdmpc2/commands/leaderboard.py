"""Build a leaderboard of MT30 from public results and evaluations of your own, with intervals and a figure.

tdmpc2 leaderboard
tdmpc2 leaderboard --download
tdmpc2 leaderboard logs/mt30/1/eval-student logs/mt30/1/eval-student-2 out=leaderboard.md figure=leaderboard.png

Evaluations are the directories that `tdmpc2 evaluate` names at its end. Without a download the short public files that
come with this package are used. What is missing is said on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.studies.sources import SITE
from tdmpc2.support.cli import one_line_errors

_SOURCES = Path("public_results")
OPTIONS = (
    Option("paths", "directories of evaluations, with results.csv and results.json", (), Path, many=True, bare=True),
    Option("sources", "directory of public results, by repository", _SOURCES, Path),
    Option("download", "fetch the public results that are not there yet", False, bool),
    Option("site", "address that their repositories are below, such as a mirror's", SITE),
    Option("out", "the page", Path("leaderboard.md"), Path),
    Option("figure", "a figure of means and intervals, as PNG; it needs matplotlib", kind=Path),
    Option("force", "replace a page that is there", False, bool),
)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, _ = read_options("leaderboard", __doc__, argv, OPTIONS)
    out, folder, figure = values["out"], values["sources"], values["figure"]
    if out.exists() and not values["force"]:
        raise ValueError(f"{out} exists: name another file by out=, or say --force")
    if figure is not None and figure.suffix.lower() != ".png":
        raise ValueError(f"figure={figure} must end in .png")
    from tdmpc2.studies.downloads import fetch_all
    from tdmpc2.studies.leaderboard import gather
    from tdmpc2.studies.leaderboard_page import draw, page
    from tdmpc2.support.files import write_text

    if values["site"] != SITE and not values["download"]:
        raise ValueError("site is where files are fetched from: add --download")
    if folder != _SOURCES and not values["download"] and not folder.is_dir():
        raise ValueError(f"sources={folder} is no directory: --download fetches the public results into it")
    if values["download"]:
        print(f"{len(fetch_all(folder, values['site']))} files fetched into {folder}")
    gathered = gather(values["paths"], [folder])
    if figure is not None:
        draw(gathered, figure)
    write_text(out, page(gathered, folder, None if figure is None else _link(figure, out)))
    print(f"{len(gathered.entries)} rows: {out}" + ("" if figure is None else f", {figure}"))
    for name in dict.fromkeys(source.method for source in gathered.absent):
        print(f"Not here: {name}; --download fetches it")


def _link(figure: Path, page: Path) -> str:
    """Write the way from the page to the figure."""
    import os
    from urllib.parse import quote

    return quote(Path(os.path.relpath(figure.absolute(), page.absolute().parent)).as_posix())
