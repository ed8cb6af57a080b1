"""Stand in for the package when a benchmark is started as a file.

Python then looks for modules beside that file, so that ``import benchmarks`` finds this one. It puts the repository's
root in the place of this folder; from there on everything is as under ``python -m benchmarks.plan``.
"""

import os
import sys
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tdmpc2_start import bound_spinning  # noqa: E402 is found in the root

before = dict(os.environ)
bound_spinning()
if os.environ != before:  # the file has imported torch already, which reads this once
    os.execv(sys.executable, sys.orig_argv)
