"""The command that inspects and converts checkpoint files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tdmpc2.checkpoints import layouts
from tdmpc2.checkpoints.files import Checkpoint, file_sha256, load_file, save_file
from tdmpc2.checkpoints.files import convert as convert_to
from tdmpc2.commands import checkpoint
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.checkpoints import SMALL, assert_same, published_file
from tests.helpers.reference import REPO


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tdmpc2.checkpoint", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)


def convert(source: Path, layout: str, out: Path, *options: str) -> int:
    try:
        checkpoint.main(["convert", str(source), "--layout", layout, "--out", str(out), *options])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_inspect_published_file_prints_its_facts() -> None:
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


def test_inspect_saved_file_prints_its_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Config, state: dict[str, Tensor]
) -> None:
    online = {name: tensor for name, tensor in state.items() if not name.startswith("_target")}
    payload = {"model": online, "config": config.to_dict(), "step": 12_345, "score": 28.45}
    save_file(tmp_path / "x.pt", payload, overwrite=False)
    checkpoint.main(["inspect", str(tmp_path / "x.pt")])
    facts = {line[:22].strip(): line[22:] for line in capsys.readouterr().out.splitlines()}
    assert facts["model size"] == "not a standard one"
    assert "latent_dim 16, num_q 3, task_dim 4, num_bins 11" in facts["widths"]
    assert facts["target heads"] == "no"
    assert facts["parameters"] == f"{sum(tensor.numel() for tensor in online.values()):,}"
    assert (facts["step"], facts["precision"], facts["other entries"]) == ("12,345", "fp32", "score")


def test_inspect_single_task_file_without_name_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = WorldModel(Config(task="cup-catch", **SMALL))
    torch.save(model.state_dict(), tmp_path / "x.pt")
    checkpoint.main(["inspect", str(tmp_path / "x.pt")])
    out = capsys.readouterr().out
    assert "tasks                 1, not named in the file" in out
    assert "obs_dim 8, action_dim 2" in out


def test_convert_to_layout_b_and_back_is_exact(tmp_path: Path, config: Config, state: dict[str, Tensor]) -> None:
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


def test_convert_of_layout_b_keeps_masks_and_bounds(state: dict[str, Tensor]) -> None:
    masks = torch.rand(30, 6).round()
    b = layouts.to_layout_b(state, masks, -7, 8)
    again = convert_to(Checkpoint(b), "b")["model"]
    assert torch.equal(again["_action_masks"], masks)
    assert (again["log_std_min"].item(), again["log_std_dif"].item()) == (-7, 8)


def test_convert_of_single_task_file_writes_no_masks() -> None:
    state = dict(WorldModel(Config(task="cup-catch", **SMALL)).state_dict())
    b = convert_to(Checkpoint(state), "b")["model"]
    assert "_action_masks" not in b
    assert_same(layouts.to_layout_a(b), state)


def test_convert_of_unknown_task_set_asks_for_tasks(state: dict[str, Tensor]) -> None:
    few = {**state, "_task_emb.weight": state["_task_emb.weight"][:7]}
    with pytest.raises(ValueError, match="does not name its 7 tasks"):
        convert_to(Checkpoint(few), "b")


def test_checkpoint_command_with_bad_arguments_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "student.pt").write_bytes(b"")
    child = run("inspect", tmp_path / "studnet.pt")
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.splitlines()[-1].startswith("error: ")
    assert "Did you mean 'student.pt'" in child.stderr
    assert "Traceback" not in child.stderr


def test_convert_onto_existing_file_needs_force(
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
    assert convert(path, "z", tmp_path / "y.pt") == 2
