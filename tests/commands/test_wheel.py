"""The wheel, installed in a fresh environment outside the repository.

The environment sees the libraries of this one but not its `tdmpc2`, so that what runs there is what the wheel holds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Collection
from pathlib import Path

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.shipped import SHIPPED
from tdmpc2.config import parse_cfg
from tdmpc2.support.extras import EXTRAS
from tests.helpers.forks import environment
from tests.helpers.playing import SMALL_AGENT
from tests.helpers.reference import REPO, shared_file

pytestmark = pytest.mark.slow
SOURCES = (
    "tdmpc2",
    "student_config",
    "models",
    "generic.yaml",
    "pyproject.toml",
    "setup.py",
    "tdmpc2_start.py",
    "MANIFEST.in",
    "README.md",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources, because a build leaves files beside them."""
    source = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, "LICENSE"):
        path = REPO / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
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
def pure(source: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel that results without a compiler."""
    return built(source, tmp_path_factory.mktemp("pure"), CXX="no-such-compiler")


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(wheel, tmp_path_factory.mktemp("environment"))


def installed(wheel: Path, root: Path, without: Collection[str] = ()) -> Path:
    """Install the wheel in a new environment and return the directory of its programs.

    Args:
        wheel: the file.
        root: an empty directory.
        without: modules of this environment's libraries that the new one does not have.
    """
    venv.create(root / "venv", with_pip=False)
    python = root / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.check_output([python, "-c", ask], text=True)
    libraries = root / "libraries"
    libraries.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "tdmpc2" not in entry.name and entry.suffix != ".pth" and entry.name not in without:
            (libraries / entry.name).symlink_to(entry)
    Path(purelib.strip(), "libraries.pth").write_text(f"{libraries}\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", wheel]
    own = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # a source tree does not count as installed
    subprocess.run(command, check=True, capture_output=True, env=own)
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


def test_wheel_holds_the_models_that_are_found_by_name(programs: Path, tmp_path: Path) -> None:
    listed = run(programs, "tdmpc2", "checkpoint", "inspect", "walker", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert SHIPPED["walker"].sha256 in listed.stdout


def test_wheel_holds_the_sources_of_the_planner_without_python(wheel: Path) -> None:
    """`tdmpc2 export --to native` needs these sources in an installed wheel."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if not name.endswith((".py", ".so"))}
    for folder in (REPO / "tdmpc2" / "native", REPO / "tdmpc2" / "acceleration" / "cpu"):
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in (".py", ".so"):
                assert held[str(path.relative_to(REPO))] == path.read_bytes()


def test_wheel_runs_outside_the_repository(programs: Path, tmp_path: Path) -> None:
    """The wheel used to have no command, and the configuration files were only in the clone."""
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

KERNELS, NATIVE = "tdmpc2/acceleration/cpu/kernels.so", "tdmpc2/native/libtdmpc2.so"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="builds the kernels with g++")


@needs_compiler
def test_wheel_brings_the_kernels_for_any_python(wheel: Path, programs: Path, tmp_path: Path) -> None:
    """Users may have no compiler, so the wheel's own library is loaded and nothing is built."""
    assert re.search(r"-py3-none-(manylinux_2_\d+_|macosx_)", wheel.name)
    code = (
        "from tdmpc2.acceleration.cpu import library as l; "
        "print(l.opened(l._PATH) is not None, [(v.name, v.agrees()) for v in l.variants() if v.runs_here])"
    )
    asked = run(programs, "python", "-c", code, cwd=tmp_path)
    assert asked.stdout.startswith("True [('scalar', True)"), asked.stderr
    assert "False" not in asked.stdout


@needs_compiler
def test_wheel_brings_the_planner_for_cpp(programs: Path, tmp_path: Path) -> None:
    """A program is compiled with the wheel's header and library alone, and plans as this program does."""
    model = ["checkpoint=student", "task=walker-walk", "num_samples=32", "iterations=2"]
    outcome = run(programs, "tdmpc2", "export", *model, "--to", "native", "--out", "robot", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    code = "import pathlib, tdmpc2; print(pathlib.Path(tdmpc2.__file__).parent / 'native')"
    native = run(programs, "python", "-c", code, cwd=tmp_path).stdout.strip()
    links = ["-I", native, "-L", native, "-ltdmpc2", f"-Wl,-rpath,{native}"]
    subprocess.run(["g++", "-std=c++17", "robot/example.cpp", *links, "-o", "plans"], cwd=tmp_path, check=True)
    shown = subprocess.run(["./plans", "robot/model.safetensors"], cwd=tmp_path, check=True, capture_output=True)
    assert re.match(rb"walker-walk, \w+ kernels, action( -?[\d.e-]+){6}\n$", shown.stdout), shown


def test_wheel_without_a_compiler_is_pure_and_says_so(pure: Path) -> None:
    assert pure.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure) as archive:
        assert not {KERNELS, NATIVE} & set(archive.namelist())


def test_editable_installation_links_the_libraries_that_are_there_alone(source: Path, tmp_path: Path) -> None:
    """In strict mode setuptools links every file, and optional libraries may be missing."""
    code = f"import setuptools.build_meta as b; b.build_editable({str(tmp_path)!r}, {{'editable_mode': 'strict'}})"
    environment = {**os.environ, "CXX": "no-compiler"}
    subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, check=True, capture_output=True)
    assert len(list(tmp_path.glob("*.whl"))) == 1


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs aarch64-linux-gnu-g++")
def test_wheel_of_a_cross_compiler_is_for_its_processor(source: Path, tmp_path: Path) -> None:
    arm = built(source, tmp_path, CXX="aarch64-linux-gnu-g++")
    assert re.search(r"-py3-none-manylinux_2_\d+_aarch64\.whl$", arm.name)
    with zipfile.ZipFile(arm) as archive:
        for library in (KERNELS, NATIVE):
            machine = archive.read(library)[18:20]  # of the ELF header
            assert int.from_bytes(machine, "little") == 183, library  # EM_AARCH64


def test_wheel_evaluates_the_published_student(programs: Path, tmp_path: Path) -> None:
    checkpoint = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    budget = ["task=pendulum-spin", "eval_episodes=1", "mpc=false", "device=cpu", "num_threads=1"]
    outcome = run(programs, "tdmpc2", "evaluate", f"--checkpoint={checkpoint}", *budget, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1].startswith("Normalized score: ")


@needs_compiler
@pytest.mark.skipif(shutil.which("readelf") is None, reason="reads the symbols with readelf")
def test_tag_of_the_wheel_is_what_its_library_needs(wheel: Path, tmp_path: Path) -> None:
    """Installers trust the wheel's name: a library that needs a newer glibc would fail to load unnoticed."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [archive.extract(library, tmp_path) for library in (KERNELS, NATIVE)]
    named = re.search(r"manylinux_2_(\d+)_", wheel.name)
    assert named
    text = subprocess.check_output(["readelf", "--wide", "--version-info", *libraries], text=True)
    newest = max(int(minor) for minor in re.findall(r"\bGLIBC_2\.(\d+)", text))
    assert newest <= int(named[1]) <= max(newest, 35)


# -- four environments ------------------------------------------------------------------------------------------------

_SHORT = """
import gymnasium, numpy as np
from gymnasium.spaces import Box

class Short(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space, action_space = Box(-9, 9, (3,), np.float32), Box(-1, 1, (2,), np.float32)
    def __init__(self, render_mode=None):
        self.render_mode = render_mode
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}
    def step(self, action):
        return np.ones(3, np.float32), 1.0, False, False, {}
    def render(self):
        return np.zeros((64, 64, 3), np.uint8)

gymnasium.register("Short-v0", Short, max_episode_steps=9)
"""
_TASK = "task=short:Short-v0"
_LINES = (
    "doctor",
    f"evaluate model.pt {_TASK} eval_episodes=1 num_threads=1 device=cpu compile=true",
    f"quantize model.pt recipes=int8 plans=2 repeats=1 {_TASK} num_threads=1",
    f"play model_int8.pt {_TASK} window=false out=play.mp4 num_threads=1 device=cpu",
)
_RUN = """
import sys
from tdmpc2.commands import main
for line in sys.argv[1:]:
    print("$", line, flush=True)
    try:
        main(line.split())
    except SystemExit as ended:
        print("exit code", ended.code, flush=True)
"""


@needs_compiler
@pytest.mark.parametrize("extras", [True, False], ids=["extras", "no extras"])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "no compiler"])
def test_fresh_environment_looks_scores_quantises_and_plays(
    kernels: bool, extras: bool, wheel: Path, pure: Path, tmp_path: Path
) -> None:
    """The commands run with and without kernels and extras; they share a process, since importing is slow."""
    modules = {module for extra in EXTRAS.values() for module in extra.modules} - {"PIL", "setuptools"}
    programs = installed(wheel if kernels else pure, tmp_path / "env", () if extras else modules)
    home = tmp_path / "home"
    home.mkdir()
    (home / "short.py").write_text(_SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        TDMPC2(parse_cfg({"task": "short:Short-v0", **SMALL_AGENT, "horizon": 2})).save(home / "model.pt")
    own = {**environment(), "PYTHONPATH": str(home), "PATH": str(programs)}
    command = [str(programs / "python"), "-c", _RUN, *_LINES]
    done = subprocess.run(command, cwd=home, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    looked, scored, quantised, played = done.stdout.split("$ ")[1:]
    assert "exit code" not in looked + scored + quantised, done.stdout + done.stderr
    assert "site-packages" in looked
    assert "Return: 9.00" in scored
    assert ("(kernels)" in scored) == kernels
    assert (home / "model_int8.pt").stat().st_size < (home / "model.pt").stat().st_size
    if extras:
        assert "return 9.0 in 9 steps" in played
        assert (home / "play.mp4").stat().st_size > 0
    else:
        assert "exit code 2" in played
        assert "pip install imageio imageio-ffmpeg" in done.stderr
