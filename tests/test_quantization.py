"""Quantisation: properties of the int8 grid, recipes, error measures, the published files, and the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.testing import assert_close

import quantize
from tdmpc2 import layouts
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoint import load_file, precision_of, read_file, save_file
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization import (
    RECIPES,
    deployable,
    module_errors,
    output_errors,
    quantize_state,
    random_play,
    relative_db,
)
from tdmpc2.tasks import MT30, TaskSpec
from tests.conftest import load_golden, shared_file

FP16, INT8, MIXED = (RECIPES[name] for name in ("fp16", "int8", "mixed"))
HEADS = "_Qs.params.0"  # [num_q, out, in]
MATRIX = "_dynamics.0.weight"  # [out, in]

numbers = st.floats(-1e4, 1e4, width=32)
shapes = st.tuples(*[st.integers(1, 5)] * 3)
head_weights = hnp.arrays(np.float32, shapes, elements=numbers).map(torch.from_numpy)


def published_model(kind: str) -> WorldModel:
    path = shared_file(f"checkpoints/mt30_1M_steps_045dist_{kind}.pt")
    model = WorldModel(Config()).requires_grad_(False)
    model.load_state_dict(torch.load(path, map_location="cpu")["model"])
    return model


def built(state: dict[str, Any]) -> WorldModel:
    model = WorldModel(Config()).requires_grad_(False)
    model.load_state_dict(state)
    return model


# -- the int8 grid ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(head_weights)
def test_error_is_at_most_half_a_step(w: Tensor) -> None:
    stored = quantize_state({HEADS: w, MATRIX: w[0]}, INT8)
    restored = layouts.to_layout_a(stored)
    for name, original in ((HEADS, w), (MATRIX, w[0])):
        codes, scale = stored[name], stored[f"{name}.scale"]
        assert codes.dtype == torch.int8
        assert codes.min() >= -127
        assert scale.dtype == torch.float32
        assert scale.shape == (*original.shape[:-1], 1)
        # The quotient is rounded to float32 before it is rounded to an integer.
        assert ((original.double() - restored[name].double()).abs() <= scale.double() * (0.5 + 1e-5)).all()


@settings(deadline=None)
@given(head_weights, st.data())
def test_channels_and_heads_do_not_affect_each_other(w: Tensor, data: st.DataObject) -> None:
    head, channel = (data.draw(st.integers(0, size - 1)) for size in w.shape[:2])
    changed = w.clone()
    changed[head, channel] = torch.from_numpy(data.draw(hnp.arrays(np.float32, w.shape[2], elements=numbers)))
    before, after = (quantize_state({HEADS: weights}, INT8) for weights in (w, changed))
    others = torch.ones(w.shape[:2], dtype=torch.bool)
    others[head, channel] = False
    for name in before:
        assert torch.equal(before[name][others], after[name][others])
    alone = quantize_state({HEADS: changed[head, channel].reshape(1, 1, -1)}, INT8)
    for name in alone:
        assert torch.equal(after[name][head, channel], alone[name][0, 0])


@settings(deadline=None)
@given(head_weights)
def test_quantising_again_changes_nothing(w: Tensor) -> None:
    first, same = (quantize_state({HEADS: w}, INT8) for _ in range(2))
    again = quantize_state(layouts.to_layout_a(first), INT8)
    for name in first:
        assert torch.equal(first[name], same[name])
    assert torch.equal(first[HEADS], again[HEADS])
    assert_close(first[f"{HEADS}.scale"], again[f"{HEADS}.scale"], rtol=3e-7, atol=0)


def test_rows_of_zeros_and_ties() -> None:
    rows = torch.tensor([[0.0, 0, 0, 0, 0, 0], [127, 0.5, 1.5, 2.5, -0.5, -1.5], [2e-43, -2e-43, 0, 0, 0, 0]])
    stored = quantize_state({MATRIX: rows}, INT8)
    assert stored[f"{MATRIX}.scale"].tolist() == [[1], [1], [1]]
    assert stored[MATRIX].tolist() == [[0] * 6, [127, 0, 2, 2, 0, -2], [0] * 6]


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "int8_modules"),
    [(FP16, set()), (INT8, {"_encoder", "_dynamics", "_reward", "_pi", "_Qs"}), (MIXED, {"_reward", "_Qs"})],
)
def test_what_a_recipe_stores(tiny_cfg: Config, recipe: Any, int8_modules: set[str]) -> None:
    state = WorldModel(tiny_cfg).state_dict()
    stored = quantize_state(state, recipe)
    for name, tensor in state.items():
        module = name.split(".")[0]
        matrix = name in {f"_Qs.params.{index}" for index in (0, 4, 8)} or (
            name.endswith(".weight") and tensor.ndim == 2 and name != "_task_emb.weight"
        )
        if module == "_target_Qs":
            assert name not in stored
        elif matrix and module in int8_modules:
            assert (stored[name].dtype, stored[f"{name}.scale"].dtype) == (torch.int8, torch.float32)
        else:
            assert stored[name].dtype == torch.float16
            assert f"{name}.scale" not in stored
    assert precision_of(stored) == recipe.name
    layouts.check_state(layouts.to_layout_a(stored), state, recipe.name)


def test_every_full_precision_form_gives_the_same_tensors(tiny_cfg: Config) -> None:
    state = {name: tensor.half() for name, tensor in WorldModel(tiny_cfg).state_dict().items()}
    copy = {name: tensor.clone() for name, tensor in state.items()}
    forms = [state, layouts.to_layout_a(state), layouts.to_layout_b(state, torch.ones(30, 6), -10, 12)]
    first, *others = (quantize_state(form, MIXED) for form in forms)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(state[name], copy[name]) for name in copy)


@pytest.mark.parametrize("value", [65520.0, -1e6, math.inf, math.nan])
def test_fp16_refuses_what_it_cannot_hold(tiny_cfg: Config, value: float) -> None:
    state = {name: tensor.clone() for name, tensor in WorldModel(tiny_cfg).state_dict().items()}
    quantize_state(state, FP16)
    state["_pi.1.weight"][2, 3] = value
    with pytest.raises(ValueError, match=re.escape(f"x.pt: '_pi.1.weight' holds {value:g}, which recipe fp16")):
        quantize_state(state, FP16, "x.pt")
    if math.isfinite(value):
        assert_close(layouts.to_layout_a(quantize_state(state, INT8))["_pi.1.weight"][2, 3], torch.tensor(value))
    else:
        with pytest.raises(ValueError, match=re.escape(f"holds {value:g}, which recipe int8")):
            quantize_state(state, INT8)


def test_quantised_input_is_refused(tiny_cfg: Config) -> None:
    for recipe in (INT8, MIXED):
        with pytest.raises(ValueError, match=r"is quantised .*take the full-precision file"):
            quantize_state(quantize_state(WorldModel(tiny_cfg).state_dict(), recipe), FP16)
    with pytest.raises(ValueError, match="is quantised"):
        quantize_state({MATRIX: torch.quantize_per_tensor(torch.ones(2, 2), 1.0, 0, torch.qint8)}, INT8)


# -- error measures ---------------------------------------------------------------------------------------------------


def test_relative_db() -> None:
    expected = torch.tensor([3.0, -4.0])
    assert relative_db(expected * 1.1, expected) == pytest.approx(-20, abs=1e-4)
    assert relative_db(-expected, expected) == pytest.approx(20 * math.log10(2))
    assert relative_db(expected, expected) == -math.inf
    assert relative_db(expected, torch.zeros(2)) == math.inf
    assert relative_db(torch.zeros(2), torch.zeros(2)) == -math.inf


def test_module_errors_and_sizes(tiny_cfg: Config) -> None:
    state = WorldModel(tiny_cfg, torch.Generator().manual_seed(0)).state_dict()
    off = {name: tensor * 1.1 if name.startswith("_reward.") else tensor for name, tensor in state.items()}
    errors = module_errors(state, off)
    assert list(errors) == ["task_emb", "encoder", "dynamics", "reward", "pi", "Qs"]
    assert errors.pop("reward").error_db == pytest.approx(-20, abs=1e-4)
    assert {error.error_db for error in errors.values()} == {-math.inf}

    stored = quantize_state(state, INT8)
    errors = module_errors(state, stored)
    assert sum(error.parameters for error in errors.values()) == sum(t.numel() for t in deployable(state).values())
    assert sum(error.bytes for error in errors.values()) == sum(t.nbytes for t in stored.values())
    assert all(-70 < errors[module].error_db < -40 for module in ("encoder", "dynamics", "reward", "pi", "Qs"))


def test_output_errors_follow_the_data_flow(tiny_cfg: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    reference, other = WorldModel(tiny_cfg, generator), WorldModel(tiny_cfg)
    for name, param in reference.named_parameters():
        if name in ("_reward.2.weight", "_Qs.params.8"):
            torch.nn.init.normal_(param, generator=generator)  # fresh heads are zero
    other.load_state_dict(reference.state_dict())
    inputs = (torch.randn(9, 24), torch.rand(9, 6), torch.arange(9))

    def differing(name: str) -> set[str]:
        with torch.no_grad():
            other.get_parameter(name).mul_(1.01)
        errors = output_errors(reference, other, *inputs)
        other.load_state_dict(reference.state_dict())
        assert all(value < 0 for value in errors.values())
        return {name for name, value in errors.items() if value > -math.inf}

    everything = {"latent", "next_latent", "reward", "value", "policy"}
    assert set(output_errors(reference, other, *inputs).values()) == {-math.inf}
    assert differing("_encoder.state.1.ln.weight") == everything
    assert differing("_dynamics.1.ln.weight") == {"next_latent"}
    assert differing("_reward.2.weight") == {"reward"}
    assert differing("_Qs.params.8") == {"value"}
    assert differing("_pi.2.weight") == {"policy"}


def test_random_play_of_real_environments() -> None:
    cfg = Config(tasks=("cartpole-balance", "hopper-hop"))
    first, second = (random_play(cfg, count=10, seed=3) for _ in range(2))
    assert first.task is not None
    assert first.task.tolist() == [MT30.index("cartpole-balance")] * 5 + [MT30.index("hopper-hop")] * 5
    assert first.obs.shape == (10, 24)
    assert first.action.shape == (10, 6)
    for row, (obs_dim, action_dim) in ((slice(5), (5, 1)), (slice(5, 10), (15, 4))):
        assert first.obs[row, obs_dim - 1].any()
        assert first.action[row, :action_dim].all()
        assert not first.obs[row, obs_dim:].any()
        assert not first.action[row, action_dim:].any()
    assert len(first.obs.unique(dim=0)) == 10
    assert torch.equal(first.obs, second.obs)
    assert first.source == "10 observations of 2 tasks played with random actions"


def test_random_play_without_environments_says_so() -> None:
    cfg = Config(task="unnamed", task_specs=(TaskSpec("unnamed", 7, 2),))
    inputs = random_play(cfg, count=50)
    assert inputs.obs.shape == (50, 7)
    assert inputs.action.shape == (50, 2)
    assert inputs.task is None
    assert "50 standard-normal observations" in inputs.source
    assert "'unnamed'" in inputs.source


# -- the published files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp16", "int8", "mixed"])
def test_published_files_compute_what_was_recorded(kind: str) -> None:
    model, inputs, g = published_model(kind), load_golden("model_forward.npz"), load_golden("quantized.npz")
    task, action = inputs["task"], inputs["action"]
    z = model.encode(inputs["obs"], task)
    logits = model.reward(z, action, task)
    _, info = model.pi(z, task, torch.zeros_like(action))
    got = {
        "z": z,
        "next_z": model.next(z, action, task),
        "reward_logits": logits,
        "reward": decode(logits, model.bins),
        "q": decode(model.Q(z, action, task, "all"), model.bins),
        "target_q": decode(model.Q(z, action, task, "all", target=True), model.bins),
        "pi_mean": info["mean"],
        "pi_log_std": info["log_std"],
    }
    for name, value in got.items():
        want = g[f"{kind}/{name}"]
        rms = float(want.square().mean().sqrt())
        assert_close(value, want, rtol=1e-3, atol=1e-3 * rms, msg=lambda text, name=name: f"{kind}/{name}: {text}")


def test_our_int8_against_the_published_int8(published: dict[str, Tensor]) -> None:
    g = load_golden("model_forward.npz")
    inputs = [g[name][:48] for name in ("obs", "action", "task")]  # the rows with real observations
    reference = built(published)
    theirs = output_errors(reference, published_model("int8"), *inputs)
    ours = output_errors(reference, built(quantize_state(published, INT8)), *inputs)
    gains = {name: theirs[name] - ours[name] for name in ours}
    assert gains["reward"] >= 30, gains
    assert gains["value"] >= 30, gains
    assert gains["latent"] >= 20, gains
    assert gains["policy"] >= 12, gains


# -- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model_file(tmp_path: Path, tiny_cfg: Config) -> Path:
    """A full-precision file of one agent, whose measurement plays one task."""
    path = tmp_path / "in" / "x.pt"
    TDMPC2(tiny_cfg.replace(tasks=("pendulum-spin",))).save(path, step=7)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def run_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        quantize.main(arguments)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_command_writes_loadable_files_beside_the_checkpoint(
    model_file: Path, tiny_cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model_file.read_bytes()
    quantize.main(["--checkpoint", str(model_file)])
    assert names(model_file.parent) == ["x.pt", "x_fp16.pt", "x_int8.pt", "x_mixed.pt"]
    assert model_file.read_bytes() == before
    full = load_file(model_file)
    for recipe in RECIPES:
        path = model_file.with_name(f"x_{recipe}.pt")
        file = load_file(path)
        assert (file.step, file.config, file.extra) == (7, full.config, {"recipe": recipe})
        assert precision_of(file.model) == recipe
        plain = torch.load(path, map_location="cpu")["model"]
        WorldModel(tiny_cfg).load_state_dict(plain)
        TDMPC2(tiny_cfg).load(path)
        agent = load_agent(path, device="cpu", precision="fp32")
        assert agent.act(np.zeros(24, np.float32), t0=True, eval_mode=True, task="walker-walk").shape == (6,)
        for name, tensor in quantize_state(full.model, RECIPES[recipe]).items():
            assert torch.equal(plain[name], tensor)
            assert type(plain[name]) is Tensor
    out = capsys.readouterr().out
    assert "240 observations of 1 tasks" in " ".join(out.split())
    assert f"{model_file.with_name('x_int8.pt').stat().st_size:,}" in out


def test_known_suffix_is_stripped_and_the_input_is_never_written(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize.main(["--checkpoint", str(model_file)])
    half = model_file.with_name("x_fp16.pt")
    before = {path.name: path.read_bytes() for path in model_file.parent.iterdir()}
    capsys.readouterr()
    quantize.main(["--checkpoint", str(half), "--force"])
    assert f"fp16: not written, {half} itself" in capsys.readouterr().out
    # int8 of the fp16 file is not int8 of the fp32 file, but the fp16 file itself is untouched.
    assert names(model_file.parent) == sorted(before)
    assert half.read_bytes() == before["x_fp16.pt"]
    out = tmp_path / "new" / "out"
    quantize.main(["--checkpoint", str(half), "--out", str(out)])
    assert names(out) == ["x_fp16.pt", "x_int8.pt", "x_mixed.pt"]
    assert (out / "x_fp16.pt").read_bytes() == before["x_fp16.pt"]
    for suffix in ("_bf16", "_fp32", "_int8", "_mixed"):
        assert quantize.target_files(Path(f"dir/my_model{suffix}.pt"), out, False) == {
            name: out / f"my_model_{name}.pt" for name in RECIPES
        }


def test_existing_files_are_kept_unless_forced(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing = model_file.with_name("x_mixed.pt")
    existing.write_bytes(b"precious")
    assert str(existing) in run_refused(["--checkpoint", str(model_file)], capsys)
    assert names(model_file.parent) == ["x.pt", "x_mixed.pt"]
    assert existing.read_bytes() == b"precious"
    quantize.main(["--checkpoint", str(model_file), "--force"])
    assert precision_of(load_file(existing).model) == "mixed"
    first = {path.name: path.read_bytes() for path in model_file.parent.iterdir()}
    quantize.main(["--checkpoint", str(model_file), "--force"])
    assert {path.name: path.read_bytes() for path in model_file.parent.iterdir()} == first


def test_unusable_input_writes_nothing(
    model_file: Path, tiny_cfg: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = model_file.parent
    assert "does not exist. Did you mean 'x.pt'?" in run_refused(["--checkpoint", str(directory / "xx.pt")], capsys)
    cut = directory / "cut.pt"
    cut.write_bytes(model_file.read_bytes()[:-1000])
    assert "truncated" in run_refused(["--checkpoint", str(cut), "--force"], capsys)
    payload = read_file(model_file)
    save_file(directory / "q.pt", payload | {"model": quantize_state(payload["model"], INT8)}, overwrite=False)
    assert "is quantised" in run_refused(["--checkpoint", str(directory / "q.pt")], capsys)
    save_file(directory / "other.pt", payload | {"config": Config().to_dict()}, overwrite=False)
    assert "does not fit the model" in run_refused(["--checkpoint", str(directory / "other.pt")], capsys)
    payload["model"]["_reward.0.bias"][0] = 1e6
    save_file(directory / "huge.pt", payload, overwrite=False)
    assert "'_reward.0.bias' holds 1e+06" in run_refused(["--checkpoint", str(directory / "huge.pt")], capsys)
    assert names(directory) == ["cut.pt", "huge.pt", "other.pt", "q.pt", "x.pt"]
    assert "Could not write" in run_refused(["--checkpoint", str(model_file), "--out", str(cut)], capsys)
    assert cut.read_bytes() == model_file.read_bytes()[:-1000]


def test_single_task_file_without_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = Config(task="cup-catch", model_size=None, enc_dim=8, mlp_dim=8, latent_dim=8, num_bins=11)
    save_file(tmp_path / "old.pt", {"model": WorldModel(cfg).state_dict()}, overwrite=False)
    quantize.main(["--checkpoint", str(tmp_path / "old.pt")])
    assert "standard-normal observations" in " ".join(capsys.readouterr().out.split())
    assert load_agent(tmp_path / "old_int8.pt", device="cpu", task="cup-catch").cfg.obs_dim == 8


def test_published_student_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    quantize.main(["--checkpoint", str(source), "--out", str(tmp_path)])
    sizes = {name: (tmp_path / f"mt30_1M_steps_045dist_{name}.pt").stat().st_size for name in RECIPES}
    model = load_file(source).model
    full = quantize.serialised_bytes(
        {"model": deployable(model), "config": Config().to_dict(), "format": 1, "step": None}
    )
    assert full > 4 * 1_426_427
    assert sizes["fp16"] <= 0.51 * full
    assert sizes["int8"] <= 0.30 * full
    assert sizes["int8"] < sizes["mixed"] < sizes["fp16"]
    out = " ".join(capsys.readouterr().out.split())
    assert "240 observations of 30 tasks" in out
    assert f"{full:,}" in out
