"""The wheel, installed in a fresh environment outside the repository.

The environment sees the libraries of this one but not its `tdmpc2`, so that what runs there is what the wheel holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.forks import environment
from tests.helpers.reference import REPO, shared_file

pytestmark = pytest.mark.slow
SOURCES = (
    "tdmpc2",
    "student_config",
    "generic.yaml",
    "pyproject.toml",
    "setup.py",
    "tdmpc2_start.py",
    "MANIFEST.in",
    "README.md",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, because a build leaves files beside them."""
    source = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, "LICENSE"):
        path = REPO / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "kernels.so"))
        else:
            shutil.copy(path, source / name)
    return source


def built(source: Path, out: Path, **variables: str) -> Path:
    """Build the wheel with these environment variables."""
    shutil.rmtree(source / "build", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, source]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **variables})
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the programs of an environment in which the wheel is installed."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False)
    python = root / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.check_output([python, "-c", ask], text=True)
    libraries = tmp_path_factory.mktemp("libraries")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "tdmpc2" not in entry.name and entry.suffix != ".pth":
            (libraries / entry.name).symlink_to(entry)
    Path(purelib.strip(), "libraries.pth").write_text(f"{libraries}\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", wheel]
    subprocess.run(command, check=True, capture_output=True)
    return python.parent


def run(programs: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    command = [str(programs / words[0]), *words[1:]]
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, check=False)


def test_wheel_holds_the_configuration_files_as_they_are(wheel: Path) -> None:
    files = [REPO / "generic.yaml", *(REPO / "student_config").glob("*.yaml")]
    with zipfile.ZipFile(wheel) as archive:
        for path in files:
            name = f"tdmpc2/commands/yaml/{path.relative_to(REPO)}"
            assert archive.read(name) == path.read_bytes()
        assert len([name for name in archive.namelist() if name.endswith(".yaml")]) == len(files)
        assert "tdmpc2/py.typed" in archive.namelist()


def test_wheel_runs_outside_the_repository(programs: Path, tmp_path: Path) -> None:
    """There was no command in the wheel, and the configuration files were only in the clone."""
    listed = run(programs, "tdmpc2", "--help", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "  evaluate " in listed.stdout
    where = run(programs, "python", "-c", "import tdmpc2; print(tdmpc2.__file__, tdmpc2.__version__)", cwd=tmp_path)
    assert str(REPO) not in where.stdout
    assert where.stdout.split()[1] == run(programs, "tdmpc2", "--version", cwd=tmp_path).stdout.split()[1]
    assert run(programs, "python", "-m", "tdmpc2", cwd=tmp_path).stdout == listed.stdout
    shown = run(programs, "tdmpc2", "train", "--cfg", "job", "steps=7", cwd=tmp_path)
    assert "  steps: 7\n" in shown.stdout
    assert "Examples\n  tdmpc2 train " in run(programs, "tdmpc2", "train", "--help", cwd=tmp_path).stdout


def test_doctor_of_the_wheel_finds_nothing_broken(programs: Path, tmp_path: Path) -> None:
    outcome = run(programs, "tdmpc2", "doctor", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stdout
    assert "site-packages" in outcome.stdout


# -- kernels ----------------------------------------------------------------------------------------------------------

KERNELS = "tdmpc2/acceleration/cpu/kernels.so"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="builds the kernels with g++")


@needs_compiler
def test_wheel_brings_the_kernels_for_any_python(wheel: Path, programs: Path, tmp_path: Path) -> None:
    """Users have no compiler; the wheel's own library is loaded, and nothing is built."""
    assert wheel.name.partition("-py3-none-")[2].startswith(("linux_", "macosx_"))
    code = (
        "from tdmpc2.acceleration.cpu import library as l; "
        "print(l.opened(l._PATH) is not None, [(v.name, v.agrees()) for v in l.variants() if v.runs_here])"
    )
    asked = run(programs, "python", "-c", code, cwd=tmp_path)
    assert asked.stdout.startswith("True [('scalar', True)"), asked.stderr
    assert "False" not in asked.stdout


def test_wheel_without_a_compiler_is_pure_and_says_so(source: Path, tmp_path: Path) -> None:
    pure = built(source, tmp_path, CXX="no-such-compiler")
    assert pure.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure) as archive:
        assert KERNELS not in archive.namelist()


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs aarch64-linux-gnu-g++")
def test_wheel_of_a_cross_compiler_is_for_its_processor(source: Path, tmp_path: Path) -> None:
    arm = built(source, tmp_path, CXX="aarch64-linux-gnu-g++")
    assert arm.name.endswith("-py3-none-linux_aarch64.whl")
    with zipfile.ZipFile(arm) as archive:
        machine = archive.read(KERNELS)[18:20]  # of the ELF header
    assert int.from_bytes(machine, "little") == 183  # EM_AARCH64


def test_wheel_evaluates_the_published_student(programs: Path, tmp_path: Path) -> None:
    checkpoint = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    budget = ["task=pendulum-spin", "eval_episodes=1", "mpc=false", "device=cpu", "num_threads=1"]
    outcome = run(programs, "tdmpc2", "evaluate", f"--checkpoint={checkpoint}", *budget, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1].startswith("Normalized score: ")
