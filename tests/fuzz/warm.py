"""A process that has imported what commands need and run some of them, so that forks of it start fast."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
from functools import partial
from pathlib import Path

import torch

from tests.fuzz.jobs import JOBS
from tests.fuzz.runner import exit_code, run_command

#: Jobs that together import what all jobs need, since imports take seconds and work a tenth of a second.
_JOBS = (
    "evaluate", "collect", "resume, with a figure", "resume online", "quantize", "data verify store", "from-run",
    "data export terminating",
)  # fmt: skip


def warm(template: Path, folder: Path) -> None:
    """Run some commands on undamaged files in this process, so that its forks need not begin from nothing.

    Args:
        template: the sample files.
        folder: a folder to be made for it, and removed.
    """
    torch.set_num_threads(1)
    shutil.copytree(template, folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in _JOBS:
            job = JOBS[name]
            file = sorted(path for path in folder.glob(job.files[0]) if path.is_file())[0].relative_to(folder)
            shutil.rmtree("new", ignore_errors=True)
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = exit_code(partial(run_command, job.command.replace("{file}", str(file)).split()))
            if code:
                raise RuntimeError(f"{name} fails on undamaged files: {said.getvalue()[-2000:]}")
    finally:
        os.chdir(before)
        shutil.rmtree(folder)
    gc.collect()
    gc.freeze()  # a collection would copy the pages that forks share with it
