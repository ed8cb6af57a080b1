"""The planner without Python acts as the one in Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.acceleration.cpu import build as kernels_build
from tdmpc2.config.sizes import budget
from tdmpc2.export.native import numeric_version
from tdmpc2.export.native_check import compare, observations
from tdmpc2.export.native_library import NativeLibrary
from tests.helpers.cpu_kernels import needs_library
from tests.helpers.native import PRECISIONS, TASKS, checkpoint, models_of, source_of
from tests.helpers.reference import REPO
from tests.native.test_native_damage import with_card
from tests.native.test_native_loop import changed

pytestmark = pytest.mark.slow  # the library is built first


def three(agent: object, task_id: int) -> torch.Tensor:
    """Make three observations for each of two environments, [3, 2, O]."""
    return observations(agent, task_id, 6).reshape(3, 2, -1)  # type: ignore[arg-type]


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_native_agent_with_the_same_noise_acts_bit_for_bit_as_python(
    folder: Path, opened: NativeLibrary, precision: str, threads: int
) -> None:
    """A robot does what was evaluated on a workstation, with planning and with the policy alone."""
    source = models_of(folder)[precision]
    native = opened.open(folder / f"{precision}.safetensors", environments=2, threads=threads)
    for number, task_id in enumerate(source.cfg.task_ids):
        found = compare(source.agent, native, task_id, number, three(source.agent, task_id))
        assert found.right, found
    native.close()


@needs_library
@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("pendulum-spin", {"num_q": 2}),
        ("dog-run", {"num_samples": 100, "horizon": 2, "num_enc_layers": 3}),
        ("mt30", {"plan_action": "mean", "num_q": 5}),
        ("mt30", {"num_bins": 2, "simnorm_dim": 4, "mlp_dim": 33}),
        ("mt30", {"plan_start": "policy", "horizon": 4}),
    ],
    ids=["one task", "38 actions", "mean", "odd sizes", "from the policy"],
)
def test_native_agent_of_other_sizes_acts_as_python(
    tmp_path: Path, opened: NativeLibrary, task: str, changes: dict[str, object]
) -> None:
    from tdmpc2.export.native_model import write_model

    tasks = TASKS[:1] if task == "mt30" else ()
    source = source_of(checkpoint(tmp_path / "model.pt", task, **changes), "fp32", tasks)
    write_model(tmp_path / "model.safetensors", source)
    native = opened.open(tmp_path / "model.safetensors", environments=2)
    found = compare(source.agent, native, source.cfg.task_ids[0], 0, three(source.agent, source.cfg.task_ids[0]))
    assert found.right, found


@needs_library
@pytest.mark.parametrize("precision", PRECISIONS)
def test_native_agent_of_tasks_that_may_terminate_acts_as_python(
    episodic: Path, opened: NativeLibrary, tmp_path: Path, precision: str
) -> None:
    """Plans differ from those of a model that never predicts termination."""
    source, path = models_of(episodic, episodic=True)[precision], episodic / f"{precision}.safetensors"
    for number, task_id in enumerate(source.cfg.task_ids):
        native = opened.open(path, environments=2, threads=1 + 2 * number)
        found = compare(source.agent, native, task_id, number, three(source.agent, task_id))
        assert found.right, found
    obs = three(source.agent, source.cfg.task_ids[0])
    changed(path, endless := tmp_path / "endless.safetensors", "termination.2.bias", (slice(None),), -1e4)
    plans = [opened.open(one, environments=2).plan(obs[0].numpy(), [0, 0]) for one in (path, endless)]
    assert np.abs(plans[0] - plans[1]).max() > 0.05


@needs_library
def test_native_policy_in_fp32_is_that_of_pytorch(folder: Path, opened: NativeLibrary) -> None:
    source = models_of(folder)["fp32"]
    obs = three(source.agent, source.cfg.task_ids[0])[0]
    native = opened.open(folder / "fp32.safetensors", environments=2)
    ids = torch.tensor([source.cfg.task_ids[0]] * 2)
    with torch.no_grad():
        expected = source.agent.model.policy_mean(source.agent.model.encode(obs, ids), ids)
    np.testing.assert_allclose(native.policy(obs.numpy(), [0, 0]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("precision", "number"), [("fp32", 1), ("bf16", 2)])
def test_file_in_int8_opened_in_a_floating_format_acts_nearly_the_same(
    folder: Path, opened: NativeLibrary, precision: str, number: int
) -> None:
    obs = three(models_of(folder)["int8"].agent, 1)[0].numpy()
    obs[:, 24:] = 0
    first = opened.open(folder / "int8.safetensors", environments=2)
    second = opened.open(folder / "int8.safetensors", environments=2, precision=number)
    difference = np.abs(first.policy(obs, [0, 1]) - second.policy(obs, [0, 1])).max()
    assert 0 < difference < 0.2


# -- random numbers of its own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "int8", "episodic/fp32", "episodic/int8"])
def test_native_plans_are_the_same_whatever_the_threads_and_instructions(
    run: Callable[..., str], folder: Path, episodic: Path, opened: NativeLibrary, name: str
) -> None:
    path = folder / f"{name}.safetensors"
    best = opened.open(path).text("instructions")
    plans = {
        (threads, instructions): run("plan", path, threads, 2, 3, instructions)
        for threads in (1, 2, 5)
        for instructions in dict.fromkeys(("scalar", best))
    }
    assert len(set(plans.values())) == 1, plans
    assert len(set(next(iter(plans.values())).split())) > 20


@pytest.mark.parametrize("num_samples", [16, 40, 128])
def test_budget_of_a_library_keeps_its_proportions_as_in_python(
    folder: Path, opened: NativeLibrary, num_samples: int
) -> None:
    """num_samples=16 alone used to keep the file's 8 elites of 64, or to be refused, instead of scaling them."""
    cfg, path = models_of(folder)["fp32"].cfg, folder / "fp32.safetensors"
    scaled = budget(num_samples, (cfg.num_samples, cfg.num_elites, cfg.num_pi_trajs))
    obs = np.full((1, 24), 0.3, np.float32)
    alone = opened.open(path, num_samples=num_samples).plan(obs, [0])
    assert np.array_equal(alone, opened.open(path, num_samples=num_samples, **scaled).plan(obs, [0]))


def test_library_keeps_a_single_elite_as_python_does(folder: Path, opened: NativeLibrary, tmp_path: Path) -> None:
    content = (folder / "fp32.safetensors").read_bytes()
    path = tmp_path / "one.safetensors"
    path.write_bytes(with_card(content, lambda card: card["budget"].update(num_elites=1)))
    obs = np.full((1, 24), 0.3, np.float32)

    def actions(**elites: int) -> np.ndarray:
        agent = opened.open(path, num_samples=16, **elites)
        return np.stack([agent.plan(obs, [0]) for _ in range(4)])

    alone, one, two = actions(), actions(num_elites=1), actions(num_elites=2)
    assert np.array_equal(alone, one)
    assert not np.array_equal(one, two)


def test_native_plans_follow_the_seed_and_start_anew_with_it(folder: Path, opened: NativeLibrary) -> None:
    obs = np.full((1, 24), 0.3, np.float32)

    def episode(agent: object) -> np.ndarray:
        return np.stack([agent.plan(obs, [0]) for _ in range(2)])  # type: ignore[attr-defined]

    first = opened.open(folder / "fp32.safetensors", seed=7)
    plans = episode(first)
    assert np.array_equal(plans, episode(opened.open(folder / "fp32.safetensors", seed=7)))
    assert not np.array_equal(plans, episode(opened.open(folder / "fp32.safetensors", seed=8)))
    assert not np.array_equal(plans[0], plans[1])
    first.reset()
    first.seed(7)
    assert np.array_equal(plans, episode(first))


def test_policy_without_noise_leaves_later_plans_as_they_would_be(folder: Path, opened: NativeLibrary) -> None:
    obs = np.full((1, 24), 0.3, np.float32)
    alone, between = (opened.open(folder / "fp32.safetensors", seed=7) for _ in range(2))
    for _ in range(2):
        assert np.array_equal(alone.plan(obs, [0]), between.plan(obs, [0]))
        between.policy(obs, [0])


def test_environment_acts_the_same_whatever_the_number_of_others(folder: Path, opened: NativeLibrary) -> None:
    """A second robot beside the first does not change what the first one does."""
    obs = np.linspace(-1, 1, 72, dtype=np.float32).reshape(3, 24)
    one, three = (opened.open(folder / "fp32.safetensors", environments=envs) for envs in (1, 3))
    assert np.array_equal(one.plan(obs[:1], [2])[0], three.plan(obs, [2, 0, 1])[0])


def test_normal_numbers_of_the_library_are_normal(folder: Path, opened: NativeLibrary) -> None:
    """Exploration noise of several policy steps is judged by its first four moments.

    The model says how wide the noise has to be, so that numbers of another variance do not pass.
    """
    count = 2000
    source = models_of(folder)["fp32"].agent.model
    task_id = models_of(folder)["fp32"].cfg.task_ids[0]
    agent = opened.open(folder / "fp32.safetensors", environments=count, explore=1)
    obs, ids = np.zeros((count, 24), np.float32), [0] * count
    with torch.no_grad():
        context = source.context(torch.tensor([task_id]))
        z = source.encode(torch.zeros(1, 24), context)
        said = source.pi(z, context)[1]
    mean, log_std = said["presquash_mean"].double().numpy(), said["log_std"].double().numpy()
    sampled = np.concatenate([agent.policy(obs, ids).astype(float) for _ in range(4)])
    drawn = (np.arctanh(np.clip(sampled, -0.999999, 0.999999)) - mean) / np.exp(log_std)
    for numbers in drawn.T[np.abs(sampled).max(0) < 0.9999]:
        assert abs(numbers.mean()) < 0.05
        assert abs((numbers**2).mean() - 1) < 0.07
        assert abs((numbers**3).mean()) < 0.15
        assert abs((numbers**4).mean() - 3) < 0.4


# -- the control loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obs", "task", "message"),
    [
        (np.nan, [0, 0], "Environment 1: the observation has values that are not finite"),
        (0.0, [0, 3], "Environment 1: the model has no task of this number"),
        (0.0, None, "the model has several tasks: pass their numbers"),
        (0.0, [0, 1], "Environment 1: its plan is of another task: an episode begins with tdmpc2_reset"),
    ],
)
def test_wrong_call_is_an_error_and_changes_nothing(
    folder: Path, opened: NativeLibrary, obs: float, task: list[int] | None, message: str
) -> None:
    x = np.zeros((2, 24), np.float32)
    agent, undisturbed = (opened.open(folder / "int8.safetensors", environments=2) for _ in range(2))
    assert np.array_equal(agent.plan(x, [0, 0]), undisturbed.plan(x, [0, 0]))
    wrong = x.copy()
    wrong[1, 3] = obs
    with pytest.raises(ValueError, match=message):
        agent.plan(wrong, task)
    assert np.array_equal(agent.plan(x, [0, 0]), undisturbed.plan(x, [0, 0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "threads=-1 must be from 1 to 1024"),
        ({"environments": 100_000}, "environments=100000 must be from 1 to 65536"),
        ({"num_samples": 8, "num_elites": 9}, "num_elites=9 must be from 1 to 8"),
        ({"instructions": b"sse9"}, "there are no instructions called 'sse9'"),
        ({"size": 8}, "the options are not those of this version's header"),
        ({"precision": 9}, "the precision is none of those"),
    ],
)
def test_options_that_cannot_be_are_refused(
    folder: Path, opened: NativeLibrary, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened.open(folder / "int8.safetensors", **options)


def test_model_says_what_it_is(folder: Path, opened: NativeLibrary) -> None:
    agent = opened.open(folder / "int8.safetensors")
    names = [agent._functions.tdmpc2_task_name(agent._handle, i).decode() for i in range(agent.number("num_tasks"))]
    assert names == list(TASKS)
    assert (agent.number("obs_dim"), agent.number("action_dim"), agent.number("horizon")) == (24, 6, 3)
    assert json.loads(agent.text("card"))["precision"] == "int8"


def test_library_without_weights_is_small(built: Path, tmp_path: Path) -> None:
    subprocess.run(["strip", "-o", tmp_path / "small.so", built / "libtdmpc2.so"], check=True)
    assert (tmp_path / "small.so").stat().st_size < 2e6


def test_installed_library_is_found_by_cmake(built: Path, tmp_path: Path) -> None:
    """Another project builds against the installed library, and its program plans."""
    subprocess.run(["cmake", "--install", built, "--prefix", tmp_path / "there"], check=True, capture_output=True)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(robot CXX)\nfind_package(tdmpc2 REQUIRED)\n"
        f"add_executable(robot {built.parent / 'example.cpp'})\ntarget_link_libraries(robot tdmpc2::tdmpc2)\n"
        "add_library(plugin MODULE empty.cpp)\ntarget_link_libraries(plugin tdmpc2::static)\n"
    )
    (tmp_path / "empty.cpp").touch()
    made = tmp_path / "build"
    configure = ["cmake", "-S", tmp_path, "-B", made, f"-Dtdmpc2_ROOT={tmp_path / 'there'}"]
    for command in (configure, ["cmake", "--build", made]):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    plugin = subprocess.check_output(["readelf", "-d", made / "libplugin.so"], text=True)
    assert "NODELETE" in plugin  # threads of the static library sleep in it
    said = subprocess.run([made / "robot", built.parent / "int8.safetensors", "pendulum-spin"], capture_output=True,
                          text=True, check=True).stdout  # fmt: skip
    assert said.startswith("pendulum-spin, ")
    assert len(said.split("action ")[1].split()) == 1


def test_project_in_c_links_the_installed_library(built: Path, tmp_path: Path) -> None:
    subprocess.run(["cmake", "--install", built, "--prefix", tmp_path / "there"], check=True, capture_output=True)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(robot C)\nfind_package(tdmpc2 REQUIRED)\n"
        "add_executable(robot main.c)\ntarget_link_libraries(robot tdmpc2::tdmpc2)\n"
    )
    (tmp_path / "main.c").write_text(
        "#include <stdio.h>\n#include <tdmpc2.h>\nint main(void) {\n"
        '    if (!tdmpc2_open("nowhere", NULL)) puts(tdmpc2_error(NULL));\n    return 0;\n}\n'
    )
    made = tmp_path / "build"
    for command in (
        ["cmake", "-S", tmp_path, "-B", made, f"-Dtdmpc2_ROOT={tmp_path / 'there'}"],
        ["cmake", "--build", made],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert subprocess.check_output([made / "robot"], text=True).startswith("nowhere: ")
    needed = subprocess.check_output(["readelf", "-d", made / "robot"], text=True)
    major, minor, *_ = numeric_version().split(".")
    assert f"libtdmpc2.so.{major if int(major) else f'0.{minor}'}]" in needed  # until 1.0 a minor release may change it


def test_build_takes_every_variant_that_the_assembler_knows(built: Path, tmp_path: Path) -> None:
    """CMake reads the probe through macros, where a backslash once made it a damaged program."""
    subprocess.run(["cmake", "-S", built.parent, "-B", tmp_path], check=True, capture_output=True)
    cache = (tmp_path / "CMakeCache.txt").read_text()
    found = {name for name, value in re.findall(r"TDMPC2_ASSEMBLES_(\w+):INTERNAL=(\w*)", cache) if value == "1"}
    flags = kernels_build.VARIANTS[kernels_build.target_machine()]
    assert found == {name for name, own in flags.items() if kernels_build._knows(["g++", *own], str(tmp_path))}


def test_variant_that_is_none_of_the_processor_is_refused(built: Path, tmp_path: Path) -> None:
    command = ["cmake", "-S", built.parent, "-B", tmp_path, "-DTDMPC2_VARIANTS=AVX2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "'AVX2' is none of those for" in " ".join(done.stderr.split())


# -- programs around it -----------------------------------------------------------------------------------------------


@needs_library
def test_returns_of_exported_planners_are_compared_seed_by_seed(
    folder: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark exports the planner twice and plays with the loops of examples/."""
    from benchmarks.returns import main

    main([str(folder / "model.pt"), "--quick", "--threads", "1", "--built", str(built)])
    own, *exported = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [row["name"] for row in exported] == ["ONNX Runtime", "libtdmpc2"]
    for row in exported:
        assert row["difference"] == pytest.approx(row["mean"] - own["mean"], abs=0.01)
        assert row["low"] <= row["difference"] <= row["high"]


@needs_library
def test_benchmark_of_the_library_runs(
    folder: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark also builds and runs examples/cpp/control_loop.cpp."""
    from benchmarks.native import main

    main([str(folder / "model.pt"), "--quick", "--threads", "1", "--built", str(built)])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    names = ["library, stripped", "this program", "libtdmpc2", "control loop", "steady work"]
    assert [row["name"] for row in results] == names
    for row in results[-2:]:
        assert 0 < row["median_ms"] <= row["tail_ms"]


def test_example_plays_an_episode_in_the_simulator(folder: Path, built: Path, tmp_path: Path) -> None:
    """examples/cpp/simulator.cpp drives an environment of this project through pipes."""
    examples = REPO / "examples" / "cpp"
    command = ["g++", "-std=c++17", "-I", folder / "include", examples / "simulator.cpp", built / "libtdmpc2.a"]
    subprocess.run([*command, "-pthread", "-o", tmp_path / "simulator"], check=True, timeout=300)
    own = {**os.environ, "PYTHON": sys.executable, "SIMULATOR": str(examples / "simulator.py")}
    words = [tmp_path / "simulator", folder / "int8.safetensors", "pendulum-spin", "1", "3"]
    done = subprocess.run(words, capture_output=True, text=True, env=own, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert re.fullmatch(r"pendulum-spin, episode 1: return \d+\.\d\d in 500 steps\n", done.stdout)


def test_export_command_writes_a_folder_that_passes_its_check(
    folder: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check uses the session's library instead of building one; the written sources are the same."""
    from tdmpc2.commands.export import main
    from tdmpc2.export import native_check

    out = tmp_path / "robot"
    monkeypatch.setattr(native_check, "build", lambda path: built)
    words = [str(folder / "model.pt"), "--to", "native", "--precision", "int8", "task=pendulum-spin", "out=" + str(out)]
    with pytest.raises(SystemExit) as end:
        main([*words, "--check", "steps=2"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "pendulum-spin" in printed
    assert "same" in printed
    written = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(written) > 20
    for path, content in written.items():
        assert path.name == "model.safetensors" or (folder / path).read_bytes() == content
    with pytest.raises(SystemExit):
        main(words)
    assert "There is already" in capsys.readouterr().err
