"""The report of a study as one HTML page that needs no other file, no network and no script.

Names of runs, tasks and files come from anywhere, so everything is escaped, and the page forbids the browser to run or
fetch anything.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from tdmpc2.envs.registry import MIXED
from tdmpc2.studies.blocks import Block, Figure, Heading, Paragraph, Table, as_html, safe
from tdmpc2.studies.curves import study_figure
from tdmpc2.studies.figures import score_figure
from tdmpc2.studies.report import blocks_of
from tdmpc2.studies.runs import Run, Study
from tdmpc2.studies.summary import rows_of
from tdmpc2.support.files import size_text, write_text
from tdmpc2.support.reading import check_regular, read_bytes
from tdmpc2.support.version import version

#: Bytes of the largest video that the page holds itself, and of all those together; larger ones are linked.
LARGEST_VIDEO, ALL_VIDEOS = 4_000_000, 40_000_000
_OF_A_STEP = re.compile(r"(.*)-(\d{1,18})")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
_STYLE = """\
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}
.wide{overflow-x:auto;margin:1rem 0}.wide img{min-width:44rem}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;overflow-wrap:anywhere;min-width:3.5rem}
td:first-child{min-width:8rem}
th{background:var(--soft)}.number{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}
img{max-width:100%;background:#fff}code{background:var(--soft);padding:0 .2rem}li{overflow-wrap:anywhere}
.videos{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}
figure{margin:0}figcaption{font-size:.8rem;overflow-wrap:anywhere}video{width:100%;background:#000}"""


def write_page(study: Study, paths: Sequence[Path], file: Path, force: bool) -> list[str]:
    """Write the page.

    Args:
        study: the runs.
        paths: directories in which their videos are, at any depth.
        file: the page.
        force: replace it.

    Returns:
        Lines to print.

    Raises:
        ValueError: the file exists and ``force`` is false, or the disk refused.
    """
    if not force and os.path.lexists(file):
        raise ValueError(f"There is already {file}: --force replaces, --html FILE writes elsewhere")
    rows = rows_of(study)
    with tempfile.TemporaryDirectory() as folder:
        scores, curves = Path(folder, "report.png"), Path(folder, "curves.png")
        remarks = {scores: score_figure(scores, rows), curves: study_figure(curves, study)}
        figures = {path.name: path.read_bytes() for path, remark in remarks.items() if not remark}
    parts = [_shown(block, figures) for block in blocks_of(study, rows, list(figures))]
    parts += [as_html(block) for block in _every_run(study)]
    parts += _videos(paths, file)
    write_text(file, _page(parts))
    said = [remark for remark in dict.fromkeys(remarks.values()) if remark]
    return [*said, f"Page: {file} ({size_text(file.stat().st_size)})"]


def _page(parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Runs</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}\n"
        f"<p><small>Written by tdmpc2 {safe(version())}.</small></p>\n</body>\n</html>\n"
    )


def _shown(block: Block, figures: dict[str, bytes]) -> str:
    if isinstance(block, Figure):
        pixels = base64.b64encode(figures[block.name]).decode()
        return f'<div class="wide"><img alt="{safe(block.title)}" src="data:image/png;base64,{pixels}"></div>'
    return as_html(block)


def _every_run(study: Study) -> Iterator[Block]:
    """List all runs, each on a line of its own."""
    runs = [*(run for group in study.groups for run in group.runs), *study.unfinished]
    yield Heading("Every run")
    yield Table(["run", "seed", "step", "of", "last score", "hours"], [_line(run) for run in runs])
    if any(not run.learned for run in runs):
        yield Paragraph("A run without a score was not evaluated since its first step (`eval_freq`).")


def _line(run: Run) -> list[str]:
    score = f"{run.learned[max(run.learned)]:.2f}" if run.learned and run.score_label != MIXED else "-"
    hours = "-" if run.seconds is None else f"{run.seconds / 3600:.2f}"
    return [str(run.path), str(run.seed), f"{run.step:,}", f"{run.config['steps']:,}", score, hours]


def _videos(paths: Sequence[Path], page: Path) -> list[str]:
    """Embed the newest video of each task of each run, and link those that are large."""
    newest: dict[tuple[Path, str], tuple[int, Path]] = {}
    for video in (file for path in paths for file in sorted(path.rglob("*.mp4"))):
        named = _OF_A_STEP.fullmatch(video.stem)
        task, step = (named[1], int(named[2])) if named else (video.stem, 0)
        newest[video.parent, task] = max(newest.get((video.parent, task), (-1, video)), (step, video))
    embedded, linked, total = [], [], 0
    for _, video in newest.values():
        try:
            if video.is_symlink():  # somebody else's run would choose what of yours the page shows
                raise ValueError("it is a link")
            check_regular(video)
            size = video.stat().st_size
            if size <= LARGEST_VIDEO and total + size <= ALL_VIDEOS:
                embedded.append(_embedded(video, read_bytes(video, LARGEST_VIDEO)))
                total += size
                continue
        except (OSError, ValueError) as error:
            linked.append(as_html(Paragraph(f"{video} cannot be read: {error}")))
            continue
        href = safe(quote(os.fsencode(Path(os.path.relpath(video, page.parent)).as_posix())))
        linked.append(f'<p><a href="{href}">{safe(str(video))}</a> ({size_text(size)})</p>')
    if not newest:
        return []
    shown = f'<div class="videos">{"".join(embedded)}</div>' if embedded else ""
    return [as_html(Heading("Videos")), shown, *linked]


def _embedded(video: Path, content: bytes) -> str:
    source = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
    return f'<figure><video controls src="{source}"></video><figcaption>{safe(str(video))}</figcaption></figure>'
