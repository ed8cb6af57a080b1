"""Quantisation: properties of the int8 grid, recipes, error measures, and the published files."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.checkpoints import layouts, sizes
from tdmpc2.checkpoints.files import precision_of
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.calibration import played_inputs
from tdmpc2.quantization.recipes import (
    RECIPES,
    Recipe,
    deployable,
    module_errors,
    output_errors,
    quantize_state,
    relative_db,
)
from tests.helpers.reference import load_golden, shared_file

FP16, INT8 = (RECIPES[name] for name in ("fp16", "int8"))
MIXED = Recipe("mixed", frozenset({"reward", "_Qs.params.4"}))  # by module and by matrix
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
def test_int8_error_is_at_most_half_a_step(w: Tensor) -> None:
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
def test_int8_channels_and_heads_are_independent(w: Tensor, data: st.DataObject) -> None:
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
def test_int8_requantised_is_unchanged(w: Tensor) -> None:
    first, same = (quantize_state({HEADS: w}, INT8) for _ in range(2))
    again = quantize_state(layouts.to_layout_a(first), INT8)
    for name in first:
        assert torch.equal(first[name], same[name])
    assert torch.equal(first[HEADS], again[HEADS])
    assert_close(first[f"{HEADS}.scale"], again[f"{HEADS}.scale"], rtol=3e-7, atol=0)


def test_int8_zero_rows_and_ties_are_exact() -> None:
    rows = torch.tensor([[0.0, 0, 0, 0, 0, 0], [127, 0.5, 1.5, 2.5, -0.5, -1.5], [2e-43, -2e-43, 0, 0, 0, 0]])
    stored = quantize_state({MATRIX: rows}, INT8)
    assert stored[f"{MATRIX}.scale"].tolist() == [[1], [1], [1]]
    assert stored[MATRIX].tolist() == [[0] * 6, [127, 0, 2, 2, 0, -2], [0] * 6]


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RECIPES, "mixed"])
def test_recipe_stores_its_dtypes(tiny_cfg: Config, name: str) -> None:
    """All matrices are int8 except the encoder's first, which takes raw observations, and the embedding."""
    state = WorldModel(tiny_cfg).state_dict()
    recipe = RECIPES.get(name, MIXED)
    stored = quantize_state(state, recipe)
    layers = [f"_{network}.{layer}.weight" for network in ("dynamics", "reward", "pi") for layer in range(3)]
    int8 = {*layers, "_encoder.state.1.weight", *(f"_Qs.params.{index}" for index in (0, 4, 8))}
    if name == "mixed":
        int8 = {"_reward.0.weight", "_reward.1.weight", "_reward.2.weight", "_Qs.params.4"}
    elif not name.startswith("int8"):
        int8 = set()
    other = torch.bfloat16 if name == "bf16" else torch.float16
    kept = {key for key in state if not key.startswith("_target_Qs.")}
    assert stored.keys() == kept | {f"{key}.scale" for key in int8}
    for key in kept:
        assert stored[key].dtype == (torch.int8 if key in int8 else other), key
    assert all(stored[f"{key}.scale"].dtype == torch.float32 for key in int8)
    assert precision_of(stored) == name.removesuffix("-weight-only")
    assert recipe.entry()["activations"] == ("float" if name == "int8-weight-only" else "int8")
    sizes.check_state(layouts.to_layout_a(stored), state, name)


def test_quantize_of_any_full_precision_form_is_equal(tiny_cfg: Config) -> None:
    state = {name: tensor.half() for name, tensor in WorldModel(tiny_cfg).state_dict().items()}
    copy = {name: tensor.clone() for name, tensor in state.items()}
    forms = [state, layouts.to_layout_a(state), layouts.to_layout_b(state, torch.ones(30, 6), -10, 12)]
    first, *others = (quantize_state(form, MIXED) for form in forms)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(state[name], copy[name]) for name in copy)


@pytest.mark.parametrize("value", [65520.0, -1e6, math.inf, math.nan])
def test_fp16_of_large_value_is_refused(tiny_cfg: Config, value: float) -> None:
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


def test_quantize_of_quantised_input_is_refused(tiny_cfg: Config) -> None:
    for recipe in (INT8, MIXED):
        with pytest.raises(ValueError, match=r"is quantised .*take the full-precision file"):
            quantize_state(quantize_state(WorldModel(tiny_cfg).state_dict(), recipe), FP16)
    with pytest.raises(ValueError, match="is quantised"):
        quantize_state({MATRIX: torch.quantize_per_tensor(torch.ones(2, 2), 1.0, 0, torch.qint8)}, INT8)


# -- error measures ---------------------------------------------------------------------------------------------------


def test_relative_db_follows_its_formula() -> None:
    expected = torch.tensor([3.0, -4.0])
    assert relative_db(expected * 1.1, expected) == pytest.approx(-20, abs=1e-4)
    assert relative_db(-expected, expected) == pytest.approx(20 * math.log10(2))
    assert relative_db(expected, expected) == -math.inf
    assert relative_db(expected, torch.zeros(2)) == math.inf
    assert relative_db(torch.zeros(2), torch.zeros(2)) == -math.inf


def test_module_errors_and_sizes_are_of_each_module(tiny_cfg: Config) -> None:
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
    assert all(-75 < errors[module].error_db < -40 for module in ("encoder", "dynamics", "reward", "pi", "Qs"))


def test_output_errors_follow_data_flow(tiny_cfg: Config) -> None:
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


# -- the published files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp16", "int8", "mixed"])
def test_published_quantised_files_match_recorded_outputs(kind: str) -> None:
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


def test_int8_of_student_matches_published_int8(published: dict[str, Tensor]) -> None:
    """Both compute in int8 on recorded and on played observations; ours has the smaller errors."""
    reference, g = built(published), load_golden("model_forward.npz")
    played = played_inputs(reference, 160)
    real = slice(48)
    inputs = (
        torch.cat([g["obs"][real], played.obs]),
        torch.cat([g["action"][real], played.action]),
        torch.cat([g["task"][real], played.task]),
    )
    assert len(inputs[0]) >= 200
    theirs = output_errors(reference, published_model("int8"), *inputs)
    payload = {"model": quantize_state(published, INT8), "config": Config().to_dict(), "recipe": INT8.entry()}
    agent = load_agent(payload, device="cpu", precision="int8")
    assert agent.model._dynamics[1].weight.dtype == torch.int8
    ours = output_errors(reference, agent.model, *inputs)
    gains = {name: theirs[name] - ours[name] for name in ours}
    assert gains["reward"] >= 30, gains
    assert gains["value"] >= 30, gains
    assert gains["latent"] >= 20, gains
    assert gains["policy"] >= 12, gains
