"""python quantize.py: its files, its report, and what it refuses before it writes anything."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file, precision_of, read_file, save_file
from tdmpc2.commands import quantize
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.copies import NAMES, serialised_bytes, target_files
from tdmpc2.quantization.recipes import OUTPUTS, RECIPES, deployable, quantize_state
from tests.helpers.agents import small_config
from tests.helpers.reference import shared_file

DEFAULT = ("fp16", "int8", "mixed")
REPORT = ("x_quantization.json", "x_quantization.md", "x_quantization.png")
QUICK = ("--repeats", "1", "--plans", "3", "--rows", "40")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return make_model_file(tmp_path)


def make_model_file(folder: Path) -> Path:
    """Save a full-precision model of one task, so that measuring it plays one task only."""
    path = folder / "in" / "x.pt"
    agent = TDMPC2(small_config(tasks=("pendulum-spin",), mlp_dim=32, num_samples=32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in (agent.model._reward[2].weight, agent.model._Qs.params[8]):  # zero in a new model
            param.normal_(0, 0.1, generator=generator)
    agent.save(path, step=7)
    return path


def run(path: Path, *arguments: str) -> None:
    quantize.main(["--checkpoint", str(path), *QUICK, *arguments])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def report_of(directory: Path, stem: str = "x") -> dict[str, Any]:
    report = json.loads((directory / f"{stem}_quantization.json").read_text())
    assert isinstance(report, dict)
    return report


def run_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        quantize.main(arguments)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


class Quantised(NamedTuple):
    """A file that was quantised with the default recipes."""

    path: Path
    before: bytes  # of the file
    out: str  # of the command
    report: dict[str, Any]

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.report["recipes"] if row["name"] == name)

    def written(self, name: str) -> Path:
        return self.path.with_name(f"x_{name}.pt")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    path = make_model_file(tmp_path_factory.mktemp("quantised"))
    before, out = path.read_bytes(), io.StringIO()
    with contextlib.redirect_stdout(out):
        run(path)
    return Quantised(path, before, out.getvalue(), report_of(path.parent))


def test_quantize_writes_files_beside_the_checkpoint_and_leaves_it(quantised: Quantised) -> None:
    assert names(quantised.path.parent) == sorted(["x.pt", *(f"x_{name}.pt" for name in DEFAULT), *REPORT])
    assert quantised.path.read_bytes() == quantised.before


@pytest.mark.parametrize("name", DEFAULT)
def test_quantized_file_says_what_it_is(quantised: Quantised, name: str) -> None:
    file, full = load_file(quantised.written(name)), load_file(quantised.path)
    recipe = {"name": name, "version": 1, "activations": "int8"}
    assert (file.step, file.config, file.format, file.extra) == (7, full.config, 1, {"recipe": recipe})


@pytest.mark.parametrize("name", DEFAULT)
def test_quantized_file_holds_what_its_recipe_makes(quantised: Quantised, name: str) -> None:
    plain = torch.load(quantised.written(name), map_location="cpu")["model"]
    if name == "mixed":
        chosen = {row["matrix"] for row in quantised.report["sensitivity"] if row["in_mixed"]}
        assert {key for key, tensor in plain.items() if tensor.dtype == torch.int8} == chosen
        return
    for key, tensor in quantize_state(load_file(quantised.path).model, RECIPES[name]).items():
        assert torch.equal(plain[key], tensor)
        assert type(plain[key]) is Tensor


@pytest.mark.parametrize("name", DEFAULT)
def test_quantized_file_loads_and_acts(quantised: Quantised, tiny_cfg: Config, name: str) -> None:
    TDMPC2(tiny_cfg.replace(mlp_dim=32)).load(quantised.written(name))
    agent = load_agent(quantised.written(name), device="cpu", precision="fp32")
    assert agent.act(np.zeros(24, np.float32), t0=True, eval_mode=True, task="walker-walk").shape == (6,)


def test_quantize_report_compares_with_the_full_file(quantised: Quantised) -> None:
    full, row = load_file(quantised.path), quantised.row("fp32")
    base = serialised_bytes({"model": deployable(full.model), "config": full.config, "format": 1, "step": 7})
    assert [row["name"] for row in quantised.report["recipes"]] == ["fp32", *DEFAULT]
    assert row["file_bytes"] == base
    assert row["weight_bytes"] == 4 * sum(tensor.numel() for tensor in deployable(full.model).values())
    assert (row["errors"], row["regret"]) == (dict.fromkeys(OUTPUTS), 0)


@pytest.mark.parametrize("name", DEFAULT)
def test_quantize_report_measures_each_recipe(quantised: Quantised, name: str) -> None:
    row, full = quantised.row(name), quantised.row("fp32")
    assert row["file_bytes"] == quantised.written(name).stat().st_size
    assert row["size_ratio"] == row["file_bytes"] / full["file_bytes"] < 1
    if row["computes_in"] == "fp32":  # this processor has no instructions for the format
        assert row["weight_bytes"] == full["weight_bytes"]
    else:
        assert row["weight_bytes"] < full["weight_bytes"]
    assert all(-100 < error < -10 for error in row["errors"].values()), row
    assert math.isfinite(row["regret"])
    assert min(row["iteration_ms"], row["plan_ms"]) > 0
    assert "score" not in row


@pytest.mark.parametrize("name", DEFAULT)
def test_quantize_report_lists_each_module(quantised: Quantised, name: str) -> None:
    modules = quantised.report["modules"][name].values()
    stored = load_file(quantised.written(name)).model
    assert sum(module["bytes"] for module in modules) == sum(tensor.nbytes for tensor in stored.values())
    assert all(module["error_db"] < -40 for module in modules)


def test_quantize_prints_and_writes_its_tables(quantised: Quantised) -> None:
    text = (quantised.path.parent / "x_quantization.md").read_text()
    for row in quantised.report["recipes"]:
        assert f"| {row['name']} | {row['computes_in']} | {row['file_bytes']:,} | {row['size_ratio']:.1%} |" in text
        assert f"{row['file_bytes']:,}" in quantised.out
    assert "40 rows of 1 tasks" in text
    assert "![Errors, sizes and regret](x_quantization.png)" in text
    assert (quantised.path.parent / "x_quantization.png").read_bytes().startswith(b"\x89PNG")
    assert "WARNING" not in quantised.out


def test_quantize_with_recipes_and_comparison_measures_both(model_file: Path, tmp_path: Path) -> None:
    run(model_file, "--recipes", "int8-weight-only, bf16", "--out", str(tmp_path / "first"))
    first = tmp_path / "first"
    assert names(first) == sorted(["x_bf16.pt", "x_int8-weight-only.pt", *REPORT])
    assert [row["name"] for row in report_of(first)["recipes"]] == ["fp32", "int8-weight-only", "bf16"]
    assert report_of(first)["sensitivity"] == []
    assert "One matrix alone" not in (first / "x_quantization.md").read_text()
    run(model_file, "--recipes", "bf16", "--compare", str(first / "x_bf16.pt"), "--out", str(tmp_path / "second"))
    *_, ours, other = report_of(tmp_path / "second")["recipes"]
    assert other["name"] == "x_bf16"
    assert other["errors"] == ours["errors"]
    assert other["regret"] == ours["regret"]


def test_quantize_report_has_scores_settings_and_tasks(model_file: Path) -> None:
    settings = ["tasks=[cartpole-balance]", "mpc=false", "num_samples=16"]
    run(model_file, "--recipes", "int8", "--evaluate", "2", "--plans", "0", "--set", *settings)
    report = report_of(model_file.parent)
    assert report["settings"]["overrides"] == {"tasks": ["cartpole-balance"], "mpc": False, "num_samples": 16}
    assert "40 rows of 1 tasks" in report["inputs"]
    fp32, int8 = report["recipes"]
    for row in (fp32, int8):
        assert row["interval"][0] <= row["score"] <= row["interval"][1]
        assert row["regret"] is None
        assert np.mean(row["returns"]["cartpole-balance"]) / 10 == pytest.approx(row["score"])
    assert (fp32["minus_fp32"], fp32["minus_fp32_interval"]) == (0, [0, 0])
    assert int8["minus_fp32"] == pytest.approx(int8["score"] - fp32["score"])
    assert f"{int8['score']:.2f} [" in (model_file.parent / "x_quantization.md").read_text()


def test_quantize_with_data_dir_takes_inputs_from_data(model_file: Path, data_dir: Path) -> None:
    run(model_file, "--recipes", "int8", "--data", str(data_dir), "--plans", "0")
    assert report_of(model_file.parent)["inputs"] == f"40 rows of 1 tasks from {data_dir}"


def test_quantize_mixed_with_looser_limit_takes_more_matrices(model_file: Path, tmp_path: Path) -> None:
    for name, limit in (("tight", "-100"), ("loose", "20")):
        run(model_file, "--recipes", "mixed", "--limit", limit, "--plans", "0", "--out", str(tmp_path / name))
    tight, loose = (load_file(tmp_path / name / "x_mixed.pt").model for name in ("tight", "loose"))
    assert precision_of(tight) == "fp16"
    assert precision_of(loose) == "int8"


def test_quantize_of_suffixed_name_never_writes_its_input(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_file, "--plans", "0")
    half = model_file.with_name("x_fp16.pt")
    before = {path.name: path.read_bytes() for path in model_file.parent.iterdir()}
    capsys.readouterr()
    run(half, "--force", "--plans", "0")
    assert f"fp16: not written, {half} itself" in capsys.readouterr().out
    assert report_of(model_file.parent)["recipes"][1]["file_bytes"] == len(before["x_fp16.pt"])
    # int8 of the fp16 file is not int8 of the fp32 file, but the fp16 file itself is untouched.
    assert names(model_file.parent) == sorted(before)
    assert half.read_bytes() == before["x_fp16.pt"]
    out = tmp_path / "new" / "out"
    run(half, "--out", str(out), "--plans", "0")
    assert names(out) == sorted([*(f"x_{name}.pt" for name in DEFAULT), *REPORT])
    assert (out / "x_fp16.pt").read_bytes() == before["x_fp16.pt"]
    for suffix in ("_bf16", "_fp32", "_int8", "_mixed", "_int8-weight-only"):
        assert target_files(Path(f"dir/my_model{suffix}.pt"), out, NAMES) == {
            name: out / f"my_model_{name}.pt" for name in NAMES
        }


@pytest.mark.parametrize("kept", ["x_mixed.pt", "x_quantization.md"])
def test_quantize_onto_existing_files_needs_force(
    model_file: Path, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    existing = model_file.with_name(kept)
    existing.write_bytes(b"precious")
    assert str(existing) in run_refused(["--checkpoint", str(model_file)], capsys)
    assert names(model_file.parent) == sorted(["x.pt", kept])
    assert existing.read_bytes() == b"precious"
    run(model_file, "--force", "--plans", "0")
    first = {path.name: path.read_bytes() for path in model_file.parent.glob("*.pt")}
    assert existing.read_bytes() != b"precious"
    run(model_file, "--force", "--plans", "0")
    assert {path.name: path.read_bytes() for path in model_file.parent.glob("*.pt")} == first


def test_quantize_interrupted_before_its_report_finishes_it(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command stopped while measuring used to refuse to go on because its own files were already there."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tdmpc2.quantization.measure.measure", stopped)
        with pytest.raises(SystemExit):
            run(model_file, "--plans", "0")
    written = {path: path.stat().st_mtime_ns for path in model_file.parent.iterdir()}
    assert len(written) == 4
    run(model_file, "--plans", "0")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert names(model_file.parent) == sorted([*(path.name for path in written), *REPORT])
    assert f"kept {model_file.with_name('x_mixed.pt')}" in capsys.readouterr().out


def test_quantize_of_unusable_input_writes_nothing(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, given = model_file.parent, ["--checkpoint", str(model_file)]
    assert "does not exist. Did you mean 'x.pt'?" in run_refused(["--checkpoint", str(directory / "xx.pt")], capsys)
    cut = directory / "cut.pt"
    cut.write_bytes(model_file.read_bytes()[:-1000])
    assert "truncated" in run_refused(["--checkpoint", str(cut), "--force"], capsys)
    payload = read_file(model_file)
    save_file(
        directory / "q.pt", payload | {"model": quantize_state(payload["model"], RECIPES["int8"])}, overwrite=False
    )
    for recipe in ("int8", "mixed"):
        refusal = run_refused(["--checkpoint", str(directory / "q.pt"), "--recipes", recipe], capsys)
        assert "is quantised" in refusal
    save_file(directory / "other.pt", payload | {"config": Config().to_dict()}, overwrite=False)
    assert "does not fit the model" in run_refused(["--checkpoint", str(directory / "other.pt")], capsys)
    payload["model"]["_reward.0.bias"][0] = 1e6
    save_file(directory / "huge.pt", payload, overwrite=False)
    assert "'_reward.0.bias' holds 1e+06" in run_refused(["--checkpoint", str(directory / "huge.pt")], capsys)
    TDMPC2(Config(model_size=None, enc_dim=8, mlp_dim=8, latent_dim=8, device="cpu")).save(directory / "small.pt")
    payload = read_file(model_file)
    save_file(directory / "far.pt", payload | {"config": payload["config"] | {"horizon": 5}}, overwrite=False)

    for arguments, message in (
        (["--recipes", "int9"], "'int9' is not one of fp16, bf16, int8, int8-weight-only, mixed. Did you mean 'int8'?"),
        (["--set", "num_sample=4"], "Unknown key 'num_sample' on the command line. Did you mean 'num_samples'?"),
        (["--set", "num_samples"], "'num_samples' is not of the form key=value"),
        (["--set", "precision=fp32"], "precision=fp32: the precision is the recipe's"),
        (["--set", "mlp_dim=64"], "does not fit the model"),
        (["--set", "num_threads=0"], "num_threads=0"),
        (["--compare", str(directory / "small.pt")], "not the same model as"),
        (["--compare", str(directory / "none.pt")], "none.pt does not exist"),
        (["--compare", str(directory / "x.pt"), str(directory / "x.pt")], "x.pt is named twice"),
        (["--compare", str(directory / "far.pt")], "it is of mt30 with horizon 5, that of mt30 with horizon 3"),
        (["--data", str(tmp_path / "nothing")], "nothing is not a directory"),
        (["--repeats", "0"], "repeats=0 must be at least 1"),
        (["--device", "tpu"], "device=tpu is not available here"),
    ):
        assert message in run_refused([*given, *arguments], capsys)
    assert names(directory) == ["cut.pt", "far.pt", "huge.pt", "other.pt", "q.pt", "small.pt", "x.pt"]
    with pytest.raises(SystemExit) as exit_info:
        quantize.main([*given, "--out", str(cut), "--plans", "0"])
    assert exit_info.value.code == 2
    assert "Could not write" in capsys.readouterr().err
    assert cut.read_bytes() == model_file.read_bytes()[:-1000]


def test_quantize_comparison_files_are_not_replaced(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_file, "--recipes", "int8", "--plans", "0")
    int8 = model_file.with_name("x_int8.pt")
    before = int8.read_bytes()
    forced = ["--checkpoint", str(model_file), "--recipes", "int8", "--compare", str(int8), "--force"]
    capsys.readouterr()
    assert f"--compare {int8} would be replaced" in run_refused(forced, capsys)
    assert int8.read_bytes() == before
    paths = [tmp_path / name for name in ("a/model.pt", "b/model.pt", "int8.pt")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(before)
    run(model_file, "--recipes", "int8", "--plans", "0", "--out", str(tmp_path), "--compare", *map(str, paths))
    compared = [row["name"] for row in report_of(tmp_path)["recipes"]][2:]
    assert compared == ["a/model", "b/model", f"{tmp_path.name}/int8"]
    out = tmp_path / "longer"  # a horizon that is set for all recipes is no difference
    run(
        model_file, "--recipes", "bf16", "--plans", "0", "--out", str(out), "--compare", str(int8), "--set", "horizon=4"
    )
    assert [row["name"] for row in report_of(out)["recipes"]] == ["fp32", "bf16", "x_int8"]


def test_quantize_comparison_with_wrong_name_is_refused(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = model_file.rename(model_file.with_name("x_fp16.pt"))
    refusal = run_refused(["--checkpoint", str(wrong), "--recipes", "fp16,int8"], capsys)
    assert "is called fp16 but holds fp32 weights" in refusal
    assert names(wrong.parent) == ["x_fp16.pt"]
    run(wrong, "--recipes", "int8", "--plans", "0")
    capsys.readouterr()
    int8 = ["--checkpoint", str(wrong.with_name("x_int8.pt")), "--recipes", "int8", "--force"]
    refusal = run_refused(int8, capsys)
    assert "is quantised" in refusal


def test_quantize_of_single_task_file_without_config_works(tmp_path: Path) -> None:
    cfg = Config(task="cup-catch", model_size=None, enc_dim=8, mlp_dim=8, latent_dim=8, num_bins=11)
    save_file(tmp_path / "old.pt", {"model": WorldModel(cfg).state_dict()}, overwrite=False)
    budget = ["--set", "num_samples=16", "num_elites=4", "num_pi_trajs=4", "iterations=1"]
    run(tmp_path / "old.pt", *budget)
    assert report_of(tmp_path, "old")["inputs"].startswith("40 standard-normal rows")
    assert load_agent(tmp_path / "old_int8.pt", device="cpu", task="cup-catch").cfg.obs_dim == 8
    run(tmp_path / "old_fp16.pt", "--recipes", "fp16,bf16", "--force", *budget)  # the first recipe is the file's own
    assert [row["name"] for row in report_of(tmp_path, "old")["recipes"]] == ["fp32", "fp16", "bf16"]
    run(tmp_path / "old.pt", "--out", str(tmp_path / "named"), *budget, "task=cup-catch")
    assert report_of(tmp_path / "named", "old")["inputs"].startswith("40 rows of 1 tasks")
    assert load_agent(tmp_path / "named" / "old_int8.pt", device="cpu").cfg.task == "cup-catch"


def test_quantize_of_published_student_reports_small_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", dict)
    # Every file then computes in the format it stores.
    monkeypatch.setattr("tdmpc2.precision.fastest_float", lambda stored, *_: "fp32" if stored == "fp32" else "bf16")
    monkeypatch.setattr("tdmpc2.precision.has_fast_int8", lambda device: True)
    source = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    budget = ["--set", "num_samples=64", "iterations=2"]
    quantize.main(["--checkpoint", str(source), "--out", str(tmp_path), "--repeats", "1", "--plans", "4", *budget])
    report = report_of(tmp_path, "mt30_1M_steps_045dist")
    fp32, fp16, int8, mixed = report["recipes"]
    assert "240 rows of 30 tasks" in report["inputs"]
    assert fp32["file_bytes"] > 4 * 1_426_427
    assert fp16["size_ratio"] <= 0.51
    assert int8["size_ratio"] <= 0.30
    assert int8["file_bytes"] < mixed["file_bytes"] < fp16["file_bytes"]
    assert int8["weight_bytes"] < mixed["weight_bytes"] < fp16["weight_bytes"] < fp32["weight_bytes"]
    assert all(error is None or error < -25 for error in mixed["errors"].values()), mixed
