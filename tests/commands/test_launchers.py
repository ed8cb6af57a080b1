"""Many runs through Hydra's launchers, at tiny size; each launcher needs its extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tdmpc2.checkpoints.files import load_file
from tests.helpers.distributed import LAUNCHED
from tests.helpers.online import SMALL
from tests.helpers.reference import REPO
from tests.helpers.toy_envs import POINT, STANDS

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}


def sweep(directory: Path, launcher: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run train.py --multirun in a directory of its own."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher", reason=f"the extra {launcher} is not installed")
    small = [f"{key}={'null' if value is None else value}" for key, value in SMALL.items()]
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    environment |= {"PYTHONPATH": str(REPO), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(
        [sys.executable, str(REPO / "train.py"), "--multirun", *words, *small, *LAUNCHERS[launcher]],
        cwd=directory,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_multirun_of_tasks_and_seeds_trains_each_once(tmp_path: Path, launcher: str) -> None:
    done = sweep(tmp_path, launcher, f"task={STANDS},{POINT}", "seed=1,2")
    assert done.returncode == 0, done.stderr
    models = sorted(tmp_path.glob("logs/*/*/*/model.pt"))
    assert len(models) == 4
    runs = {(load_file(path).config or {})["task"] + path.parent.parent.name for path in models}
    assert runs == {f"{task}{seed}" for task in (STANDS, POINT) for seed in (1, 2)}
    assert [load_file(path).step for path in models] == [SMALL["steps"]] * 4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_multirun_goes_on_where_one_run_cannot_work(tmp_path: Path, launcher: str) -> None:
    """One run of the sweep fails, since its horizon of 9 exceeds its episodes of 7 steps; the other one is trained."""
    done = sweep(tmp_path, launcher, f"task={STANDS}", "horizon=9,3")
    assert done.returncode == 1
    assert "horizon=9 must be at most 7" in done.stdout + done.stderr
    assert len(list(tmp_path.glob("logs/*/*/*/model.pt"))) == 1
