"""Checkpoint files: atomic writing, safe reading, the published files and the command line."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tdmpc2.checkpoints import files as checkpoint
from tdmpc2.checkpoints import layouts
from tdmpc2.checkpoints.files import FORMAT, Checkpoint, file_sha256, load_file, precision_of, read_file, save_file
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel

from .conftest import REPO, shared_file

KINDS = ("fp16", "int8", "mixed")
SMALL = {"model_size": None, "enc_dim": 8, "mlp_dim": 16, "latent_dim": 16, "num_q": 3, "task_dim": 4, "num_bins": 11}


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(task="mt30", **SMALL)


@pytest.fixture(scope="module")
def state(config: Config) -> dict[str, Tensor]:
    return dict(WorldModel(config, torch.Generator().manual_seed(0)).state_dict())


def assert_same(have: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(have[name], tensor), name


# -- writing and reading ----------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path, config: Config, state: dict[str, Tensor]) -> None:
    path = tmp_path / "new directory" / "x.pt"
    payload = {"model": state, "config": config.to_dict(), "step": 7, "score": [1.5, None], "parent": {"sha256": "ab"}}
    before = dict(payload)
    save_file(path, payload, overwrite=False)
    assert payload.keys() == before.keys()
    read = load_file(path)
    assert_same(read.model, state)
    assert Config(**read.config) == config
    assert (read.step, read.format, read.path) == (7, FORMAT, str(path))
    assert read.extra == {"score": [1.5, None], "parent": {"sha256": "ab"}}
    assert read.task_specs == config.task_specs
    assert torch.load(path, weights_only=True)["format"] == FORMAT
    assert [entry.name for entry in path.parent.iterdir()] == ["x.pt"]


def test_generic_state_round_trip(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    adam.step()
    numbers = np.random.default_rng(0).bit_generator.state  # holds 128-bit integers
    training = {"adam": adam.state_dict(), "numpy": numbers, "torch": torch.get_rng_state(), "where": (1, "a", True)}
    save_file(tmp_path / "state.pt", training, overwrite=False)
    read = read_file(tmp_path / "state.pt")
    assert read["numpy"] == numbers
    assert read["where"] == (1, "a", True)
    assert torch.equal(read["torch"], training["torch"])
    assert torch.equal(read["adam"]["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])
    assert read["adam"]["param_groups"] == adam.state_dict()["param_groups"]


def test_dicts_in_memory(state: dict[str, Tensor]) -> None:
    bare = load_file(OrderedDict(state))
    wrapped = load_file({"model": state, "step": 3, "note": "n"})
    assert_same(bare.model, state)
    assert (bare.config, bare.step, bare.format, bare.extra, bare.path) == (None, None, None, {}, None)
    assert (wrapped.step, wrapped.extra) == (3, {"note": "n"})


def test_layout_b_is_read_as_stored(tmp_path: Path, state: dict[str, Tensor]) -> None:
    b = layouts.to_layout_b(state, torch.ones(30, 6), -10, 12)
    torch.save({"model": b}, tmp_path / "b.pt")
    read = load_file(tmp_path / "b.pt").model
    assert read.keys() == b.keys()
    assert read["_Qs.params.__batch_size"] == torch.Size([3])
    assert_same(layouts.to_layout_a(read), state)


def test_views_are_stored_without_their_storage(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    save_file(tmp_path / "x.pt", {"model": {"a": big[:10], "b": nn.Parameter(torch.ones(2))}}, overwrite=False)
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    read = read_file(tmp_path / "x.pt")["model"]
    assert read["a"].shape == (10,)
    assert not read["b"].requires_grad


def test_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_file(path, {"step": 1}, overwrite=False)
    with pytest.raises(ValueError, match=r"x\.pt exists: choose another name"):
        save_file(path, {"step": 2}, overwrite=False)
    assert read_file(path)["step"] == 1
    save_file(path, {"step": 2}, overwrite=True)
    assert read_file(path)["step"] == 2


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_file(tmp_path / "x.pt", {"step": 1}, overwrite=False)
    finally:
        os.umask(old)
    assert (tmp_path / "x.pt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"seed": np.float64(1)}, r"payload\['config'\]\['seed'\] is a float64"),
        ([1, Path("x")], r"payload\['config'\]\[1\] is a PosixPath"),
        ({1, 2}, r"payload\['config'\] is a set"),
    ],
)
def test_unreadable_entries_are_refused_before_writing(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_file(tmp_path / "x.pt", {"config": value}, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Could not write .*file/x\.pt"):
        save_file(tmp_path / "file" / "x.pt", {"step": 1}, overwrite=False)


# -- interruptions ----------------------------------------------------------------------------------------------------

# Stops at a chosen point of the second save, says so on stdout and waits there to be killed.
KILLED = """
import os, sys, torch
from tdmpc2.checkpoints.files import save_file

path, point = sys.argv[1:]
save_file(path, {"model": {"a": torch.full((1000,), 1.0)}, "step": 1}, overwrite=False)

def stop(*args, **kwargs):
    if point == "torch.save":
        args[1].write(b"half a file")
        args[1].flush()
    print("stopped", flush=True)
    sys.stdin.read()

setattr(torch if point == "torch.save" else os, point.split(".")[1], stop)
save_file(path, {"model": {"a": torch.full((1000,), 2.0)}, "step": 2}, overwrite=True)
"""


@pytest.mark.parametrize("point", ["torch.save", "os.fsync", "os.replace"])
def test_killed_while_saving_leaves_the_old_file(tmp_path: Path, point: str) -> None:
    path = tmp_path / "x.pt"
    command = [sys.executable, "-c", KILLED, str(path), point]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stopped\n"
        assert len(list(tmp_path.iterdir())) == 2  # the old file and the unfinished one
        child.kill()
    assert child.returncode == -9
    assert load_file(path).step == 1
    save_file(path, {"model": {"a": torch.zeros(1)}, "step": 3}, overwrite=True)
    assert load_file(path).step == 3


FULL_DISK = """
import resource, sys, torch
from tdmpc2.checkpoints.files import save_file

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_file(sys.argv[1], {"model": {"a": torch.zeros(100_000)}, "step": 2}, overwrite=True)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits file sizes with RLIMIT_FSIZE")
def test_no_space_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_file(path, {"model": {"a": torch.zeros(1)}, "step": 1}, overwrite=False)
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    child = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert child.stdout.startswith(f"Could not write {path}: [Errno 27] File too large")
    assert load_file(path).step == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_failure_in_the_middle_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fail(content: Any, file: Any) -> None:
        file.write(b"half a file")
        raise kind("stopped")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ValueError if kind is RuntimeError else kind, match="stopped"):
        save_file(tmp_path / "x.pt", {"step": 1}, overwrite=False)
    assert list(tmp_path.iterdir()) == []


# -- files that cannot be used ----------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save_file(tmp_path / "student_fp16.pt", {"step": 1}, overwrite=False)
    with pytest.raises(ValueError, match=r"student_fp61\.pt does not exist\. Did you mean 'student_fp16\.pt'\?"):
        load_file(tmp_path / "student_fp61.pt")
    with pytest.raises(ValueError, match="nor does its directory"):
        load_file(tmp_path / "elsewhere" / "x.pt")
    with pytest.raises(ValueError, match="is a directory"):
        load_file(tmp_path)


def test_truncated_file_keeps_the_cause(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(tmp_path / "x.pt", {"model": state}, overwrite=False)
    content = (tmp_path / "x.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for size in (0, 1, 2, 4, 100, len(content) // 4, len(content) // 2, len(content) - 1000, len(content) - 1):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.pt .*(truncated|damaged)") as error:
            load_file(cut)
        assert error.value.__cause__ is not None
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"hello world\n" * 10, b"{}", b"\x80" * 100, b"PK\x03\x04" + b"x" * 100])
def test_other_kinds_of_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt .*(not a checkpoint|damaged)"):
        load_file(tmp_path / "x.pt")


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def _write_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _write_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, _write_legacy, _write_pickle])
@pytest.mark.parametrize("inside", [True, False])
def test_pickles_that_run_code_are_refused(tmp_path: Path, write: Any, inside: bool) -> None:
    mark = tmp_path / "was run"
    path = tmp_path / "evil.pt"
    write({"model": {"a": torch.zeros(1)}, "config": Touch(mark)} if inside else Touch(mark), path)
    with pytest.raises(ValueError, match=r"evil\.pt was refused: .*Nothing in it was executed") as error:
        load_file(path)
    if write is not _write_pickle:
        assert "'posix.system', which is not a tensor" in str(error.value)
    assert not mark.exists()
    torch.load(path, weights_only=False) if write is not _write_pickle else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file does what it was refused for


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": FORMAT + 1, "model": {"a": torch.zeros(1)}}, f"has format {FORMAT + 1}, .* up to {FORMAT}: update"),
        ({"format": "1", "model": {"a": torch.zeros(1)}}, "has format 1"),
        ({"weights": [1, 2], "epoch": 3}, r"holds no weights \(found weights, epoch\)"),
        ({"model": {"a": 1}}, r"holds no weights \(found a\)"),
        ({}, r"holds no weights \(found nothing\)"),
        (torch.zeros(3), "holds a Tensor, not a dict"),
        ({"model": {"a": torch.zeros(1)}, "config": "mt30"}, "'config' must be a dict"),
        ({"model": {"a": torch.zeros(1)}, "step": 1.5}, "'step' an integer"),
        (
            {"model": {"a": torch.zeros(1), "b": torch.tensor([1.0, float("nan"), float("inf")])}},
            "'b' has 2 values that are not finite",
        ),
        ({"model": {"a.scale": torch.tensor(float("inf")).half()}}, "'a.scale' has 1 values"),
    ],
)
def test_unusable_content(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt.* {message}"):
        load_file(tmp_path / "x.pt")


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float32, "fp32"),
        (torch.float64, "fp32"),
        (torch.float16, "fp16"),
        (torch.bfloat16, "bf16"),
        (torch.int8, "int8"),
    ],
)
def test_precision_is_that_of_the_matrices(state: dict[str, Tensor], dtype: torch.dtype, precision: str) -> None:
    def is_matrix(name: str) -> bool:
        return name != "_task_emb.weight" and state[name].ndim == 2 + ("Qs" in name)

    stored = {name: tensor.to(dtype) if is_matrix(name) else tensor for name, tensor in state.items()}
    assert precision_of(stored) == precision
    assert precision_of({**stored, "_Qs.params.4": state["_Qs.params.4"].half()}) == (
        "fp16" if dtype == torch.float16 else "mixed"
    )
    if dtype.is_floating_point:
        assert precision_of(layouts.to_layout_b(stored, None, -10, 12)) == "fp32"


def test_unknown_precision(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"torch\.int16 are not supported"):
        precision_of({name: tensor.to(torch.int16) for name, tensor in state.items()})


# -- published files --------------------------------------------------------------------------------------------------


def published_file(kind: str) -> Path:
    return shared_file(f"checkpoints/mt30_1M_steps_045dist_{kind}.pt")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_published_files(kind: str) -> None:
    path = published_file(kind)
    read = load_file(path)
    assert precision_of(read.model) == kind
    assert layouts.layout_of(read.model) == "a"
    assert layouts.infer_config(read.model) == Config(task="mt30", model_size=1)
    assert [spec.name for spec in read.task_specs][-1] == "pendulum-spin"
    state = layouts.to_layout_a(read.model)
    assert len(state) == 61
    with np.load(shared_file("golden/quantized.npz")) as golden:
        assert file_sha256(path) == golden[f"{kind}/sha256"].tobytes().hex()
        assert path.stat().st_size == golden[f"{kind}/file_size"]
        for name, tensor in state.items():
            assert tensor.dtype == torch.float32
            assert tensor.double().sum().item() == pytest.approx(golden[f"{kind}/param_sum/{name}"], rel=1e-9, abs=1e-6)
            want = golden[f"{kind}/param_abssum/{name}"]
            assert tensor.double().abs().sum().item() == pytest.approx(want, rel=1e-9, abs=1e-6)
    model = WorldModel(Config(task="mt30", model_size=1))
    layouts.check_state(state, model.state_dict(), read.origin)
    model.load_state_dict(read.model)
    assert_same(dict(model.state_dict()), state)


# -- command line -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tdmpc2.checkpoint", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)


def convert(source: Path, layout: str, out: Path, *options: str) -> int:
    return checkpoint.main(["convert", str(source), "--layout", layout, "--out", str(out), *options])


def test_inspect_a_published_file() -> None:
    path = published_file("mixed")
    child = run("inspect", path)
    assert child.returncode == 0, child.stderr
    facts = {line[:22].strip(): line[22:] for line in child.stdout.splitlines()}
    assert facts["layout"] == "(a)"
    assert facts["precision"] == "mixed"
    assert facts["model size"] == "1"
    assert facts["parameters"] == "1,426,427 (1,980,357 with target heads)"
    assert facts["target heads"] == "yes"
    assert facts["tasks"].startswith("30: walker-stand, walker-walk, ")
    assert facts["step"] == "not stored"
    assert facts["bytes of _Qs"] == "553,930"  # one byte per parameter
    assert facts["bytes of _task_emb"] == f"{30 * 96 * 2:,}"
    assert facts["bytes of the file"] == "2,873,651"
    assert facts["sha256"] == file_sha256(path)


def test_inspect_files_written_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Config, state: dict[str, Tensor]
) -> None:
    online = {name: tensor for name, tensor in state.items() if not name.startswith("_target")}
    payload = {"model": online, "config": config.to_dict(), "step": 12_345, "score": 28.45}
    save_file(tmp_path / "x.pt", payload, overwrite=False)
    assert checkpoint.main(["inspect", str(tmp_path / "x.pt")]) == 0
    facts = {line[:22].strip(): line[22:] for line in capsys.readouterr().out.splitlines()}
    assert facts["model size"] == "not a standard one"
    assert "latent_dim 16, num_q 3, task_dim 4, num_bins 11" in facts["widths"]
    assert facts["target heads"] == "no"
    assert facts["parameters"] == f"{sum(tensor.numel() for tensor in online.values()):,}"
    assert (facts["step"], facts["precision"], facts["other entries"]) == ("12,345", "fp32", "score")


def test_inspect_a_single_task_file_that_does_not_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = WorldModel(Config(task="cup-catch", **SMALL))
    torch.save(model.state_dict(), tmp_path / "x.pt")
    assert checkpoint.main(["inspect", str(tmp_path / "x.pt")]) == 0
    out = capsys.readouterr().out
    assert "tasks                 1, not named in the file" in out
    assert "obs_dim 8, action_dim 2" in out


def test_convert_to_b_and_back(tmp_path: Path, config: Config, state: dict[str, Tensor]) -> None:
    config = config.replace(log_std_min=-8.0)
    payload = {"model": state, "config": config.to_dict(), "step": 5, "score": 1.5}
    save_file(tmp_path / "a.pt", payload, overwrite=False)
    assert convert(tmp_path / "a.pt", "b", tmp_path / "b.pt") == 0
    read = load_file(tmp_path / "b.pt")
    assert layouts.layout_of(read.model) == "b"
    assert (read.step, read.extra, read.config) == (5, {"score": 1.5}, config.to_dict())
    assert (read.model["log_std_min"].item(), read.model["log_std_dif"].item()) == (-8, 10)
    assert torch.equal(read.model["_action_masks"], WorldModel(config).action_masks)
    assert convert(tmp_path / "b.pt", "a", tmp_path / "c.pt") == 0
    assert_same(load_file(tmp_path / "c.pt").model, state)


def test_convert_keeps_the_masks_and_bounds_of_layout_b(state: dict[str, Tensor]) -> None:
    masks = torch.rand(30, 6).round()
    b = layouts.to_layout_b(state, masks, -7, 8)
    again = checkpoint.convert(Checkpoint(b), "b")["model"]
    assert torch.equal(again["_action_masks"], masks)
    assert (again["log_std_min"].item(), again["log_std_dif"].item()) == (-7, 8)


def test_convert_single_task_has_no_masks() -> None:
    state = dict(WorldModel(Config(task="cup-catch", **SMALL)).state_dict())
    b = checkpoint.convert(Checkpoint(state), "b")["model"]
    assert "_action_masks" not in b
    assert_same(layouts.to_layout_a(b), state)


def test_convert_needs_the_tasks_of_an_unknown_set(state: dict[str, Tensor]) -> None:
    few = {**state, "_task_emb.weight": state["_task_emb.weight"][:7]}
    with pytest.raises(ValueError, match="does not name its 7 tasks"):
        checkpoint.convert(Checkpoint(few), "b")


def test_command_line_errors(tmp_path: Path) -> None:
    (tmp_path / "student.pt").write_bytes(b"")
    child = run("inspect", tmp_path / "studnet.pt")
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.splitlines()[-1].startswith("error: ")
    assert "Did you mean 'student.pt'" in child.stderr
    assert "Traceback" not in child.stderr


def test_convert_replaces_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Tensor]
) -> None:
    path = tmp_path / "x.pt"
    save_file(path, {"model": state}, overwrite=False)
    before = path.read_bytes()
    assert convert(path, "b", path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {path} exists")
    assert err.count("\n") == 1
    assert path.read_bytes() == before
    assert convert(path, "b", path, "--overwrite") == 0
    assert layouts.layout_of(load_file(path).model) == "b"
    with pytest.raises(SystemExit, match="2"):
        convert(path, "z", tmp_path / "y.pt")
