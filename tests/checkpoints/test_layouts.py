"""Layouts (a), (b), (c) and quantised forms: conversions, names, entries that cannot be used."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictParams
from torch import Tensor, nn

from tdmpc2.checkpoints.layouts import layout_of, rename, to_layout_a, to_layout_b
from tdmpc2.checkpoints.sizes import check_state, infer_sizes
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.layouts import PARTS, assert_same_tensors, meta_a, quantised, sizes_drawn, state_a, state_c


@settings(max_examples=25, deadline=None)
@given(sizes=sizes_drawn, seed=st.integers(0, 1000))
def test_layout_round_trip_is_exact(sizes: dict[str, int], seed: int) -> None:
    a = state_a(seed, **sizes)
    before = dict(a)
    masks = torch.ones(sizes["tasks"], sizes["action"]) if sizes["tasks"] else None
    b = to_layout_b(a, masks, -10, 12)
    c = state_c(a, sizes["enc_layers"])
    assert [layout_of(x) for x in (a, b, c)] == ["a", "b", "c"]
    copies = dict(b), dict(c)
    assert_same_tensors(to_layout_a(b), a)
    assert_same_tensors(to_layout_a(c), a)
    assert_same_tensors(to_layout_a(a), a)
    assert (dict(b), dict(c)) == copies  # tensors compare by identity here, so none was replaced
    assert all(a[name] is before[name] for name in before)
    assert len(a) == len(before)


@settings(max_examples=25, deadline=None)
@given(sizes=sizes_drawn)
def test_infer_sizes_of_every_layout_are_equal(sizes: dict[str, int]) -> None:
    a = state_a(**sizes)
    want = {
        "enc_dim": sizes["enc"],
        "num_enc_layers": sizes["enc_layers"],
        "mlp_dim": sizes["mlp"],
        "latent_dim": sizes["latent"],
        "num_q": sizes["num_q"],
        "task_dim": sizes["emb"] if sizes["tasks"] else 0,
        "num_bins": sizes["bins"],
        "obs_dim": sizes["obs"],
        "action_dim": sizes["action"],
        "num_tasks": sizes["tasks"],
    }
    for state in (a, to_layout_b(a, None, -10, 12), state_c(a, sizes["enc_layers"]), quantised(a)):
        assert infer_sizes(state) == want


def test_world_model_state_is_layout_a() -> None:
    model = WorldModel(Config(task="mt30", model_size=1))
    state = model.state_dict()
    assert len(state) == 61
    want = {name: tuple(tensor.shape) for name, tensor in meta_a(1, "mt30").items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == want
    assert layout_of(state) == "a"


class UpstreamLike(nn.Module):
    """The head containers of current TD-MPC2: tensordict parameters, one of which shares another's memory."""

    def __init__(self, mlp: int, joint: int, bins: int, num_q: int) -> None:
        super().__init__()

        def layer(n_out: int, n_in: int, norm: bool = True) -> dict[str, Any]:
            linear = {"weight": torch.zeros(num_q, n_out, n_in), "bias": torch.zeros(num_q, n_out)}
            ln = {"weight": torch.zeros(num_q, n_out), "bias": torch.zeros(num_q, n_out)}
            return linear | ({"ln": ln} if norm else {})

        layers = {"0": layer(mlp, joint), "1": layer(mlp, mlp), "2": layer(bins, mlp, norm=False)}
        self._Qs = nn.Module()
        self._Qs.params = TensorDictParams(TensorDict(layers, batch_size=[num_q]))
        self._detach_Qs_params = TensorDictParams(self._Qs.params.data, no_convert=True)
        self._target_Qs_params = TensorDictParams(self._Qs.params.data.clone(), no_convert=True)
        self.register_buffer("_action_masks", torch.zeros(30, 3))
        self.register_buffer("log_std_min", torch.tensor(0))
        self.register_buffer("log_std_dif", torch.tensor(0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layout_b_loads_into_tensordict_heads() -> None:
    a = state_a(num_q=5)
    masks = torch.rand(30, 3).round()
    b = to_layout_b(a, masks, -10.0, 12.0)
    file = io.BytesIO()
    torch.save(b, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    module = UpstreamLike(mlp=16, joint=15, bins=11, num_q=5)
    module.load_state_dict({name: value for name, value in read.items() if name not in a}, strict=True)
    assert module._Qs.params.batch_size == torch.Size([5])
    assert torch.equal(module._Qs.params["1", "ln", "bias"], a["_Qs.params.7"])
    assert torch.equal(module._target_Qs_params["2", "weight"], a["_target_Qs.params.8"])
    assert torch.equal(module._detach_Qs_params["2", "bias"], a["_Qs.params.9"])
    assert torch.equal(module._action_masks, masks)
    assert (module.log_std_min.item(), module.log_std_dif.item()) == (-10, 12)
    body = {name: tensor for name, tensor in a.items() if "Qs" not in name}
    assert_same_tensors(to_layout_a(body | dict(module.state_dict())), a)


def test_layout_b_has_the_published_entries() -> None:
    a = state_a()
    b = to_layout_b(a, torch.ones(30, 3, dtype=torch.bool), -10, 12)
    groups = ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")
    heads = [f"{g}.{i}.{part}" for g in groups for i in range(3) for part in PARTS[: 2 if i == 2 else 4]]
    metadata = {f"{g}.{end}" for g in groups for end in ("__batch_size", "__device")}
    body = {name for name in a if "Qs" not in name}
    assert b.keys() == body | set(heads) | metadata | {"_action_masks", "log_std_min", "log_std_dif"}
    assert all(b[f"{g}.__batch_size"] == torch.Size([2]) and b[f"{g}.__device"] is None for g in groups)
    assert b["_Qs.params.1.weight"].data_ptr() == b["_detach_Qs_params.1.weight"].data_ptr()
    assert b["_action_masks"].dtype == torch.float32
    assert b["log_std_min"].dtype == b["log_std_dif"].dtype == torch.int64
    assert to_layout_b(a, None, -9.5, 12)["log_std_min"].item() == -9.5
    assert "_action_masks" not in to_layout_b(a, None, -10, 12)


def test_layout_a_with_duplicate_heads_drops_them() -> None:
    a = state_a()
    b = to_layout_b(a, torch.ones(30, 3), -10, 12)
    wrong = {
        f"{group}.{name.removeprefix('_target_Qs_params.')}": value + 1 if isinstance(value, Tensor) else value
        for name, value in b.items()
        if name.startswith("_target_Qs_params.")
        for group in ("_detach_Qs.params", "_target_Qs.params")
    }
    assert len(wrong) == 24
    assert_same_tensors(to_layout_a(b | wrong), a)
    assert_same_tensors(to_layout_a(wrong | b), a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layout_a_of_half_precision_becomes_float32(dtype: torch.dtype) -> None:
    a = {name: tensor.to(dtype) for name, tensor in state_a().items()}
    assert_same_tensors(to_layout_a(a), {name: tensor.float() for name, tensor in a.items()})


def test_layout_a_of_int8_form_is_dequantised() -> None:
    a = state_a(num_q=5)
    small = quantised(a)
    new = to_layout_a(small)
    assert new.keys() == a.keys()
    for name in ("_encoder.state.0.weight", "_pi.2.weight", "_Qs.params.0", "_Qs.params.8"):
        scale = small[f"{name}.scale"]
        assert scale.shape == (*a[name].shape[:-1], 1)
        assert torch.equal(new[name], small[name].float() * scale)
        assert ((new[name] - a[name]).abs() <= scale * 0.5001).all()
    assert torch.equal(new["_Qs.params.1"], a["_Qs.params.1"].half().float())


def test_layout_a_without_target_heads_copies_heads() -> None:
    a = state_a()
    new = to_layout_a({name: tensor for name, tensor in a.items() if not name.startswith("_target_Qs")})
    assert new.keys() == a.keys()
    for k in range(10):
        assert torch.equal(new[f"_target_Qs.params.{k}"], a[f"_Qs.params.{k}"])
        assert new[f"_target_Qs.params.{k}"].data_ptr() != a[f"_Qs.params.{k}"].data_ptr()


def test_layout_a_with_some_target_heads_is_refused() -> None:
    a = state_a()
    partial = {name: tensor for name, tensor in a.items() if name != "_target_Qs.params.3"}
    with pytest.raises(ValueError, match=r"incomplete.* missing: _target_Qs\.params\.3$"):
        check_state(to_layout_a(partial), a, "x.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_layout_a_of_qint8_tensor_is_dequantised() -> None:
    a = state_a()
    stored = {name: torch.quantize_per_tensor(tensor, 0.25, 3, torch.qint8) for name, tensor in a.items()}
    for name, tensor in to_layout_a(stored).items():
        assert torch.equal(tensor, (stored[name].int_repr().float() - 3) * 0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_pi.0.bias": [1.0]}, "'_pi.0.bias' is a list"),
        ({"_pi.0.bias": torch.zeros(16, dtype=torch.int64)}, r"'_pi.0.bias' holds torch.int64"),
        ({"_pi.0.weight": torch.zeros(16, 12, dtype=torch.int8)}, "'_pi.0.weight.scale' is missing"),
        (
            {"_pi.0.weight": torch.zeros(16, 12, dtype=torch.int8), "_pi.0.weight.scale": torch.ones(16)},
            r"'_pi.0.weight.scale' \[16\] does not broadcast to '_pi.0.weight' \[16, 12\]",
        ),
        (
            {"_pi.0.weight": torch.zeros(16, 12, dtype=torch.int8), "_pi.0.weight.scale": torch.ones(1, 16, 1)},
            r"'_pi.0.weight.scale' \[1, 16, 1\] does not broadcast",
        ),
    ],
)
def test_layout_a_with_unusable_entry_names_it(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_layout_a(state_a() | change)


def test_layout_of_unknown_names_lists_them() -> None:
    with pytest.raises(ValueError, match=r"found conv\.0, conv\.1, conv\.2, conv\.3 and 5 more; expected"):
        layout_of({f"conv.{i}": torch.zeros(1) for i in range(9)})
    with pytest.raises(ValueError, match="found nothing"):
        layout_of({})


def test_rename_of_unknown_name_keeps_it() -> None:
    a = state_a(tasks=0)
    c = state_c(a, 2) | {"_encoder.rgb.0.weight": torch.zeros(1), "_encoder.state.3.bias": torch.zeros(1)}
    assert set(rename(c)) - set(a) == {"_encoder.rgb.0.weight", "_encoder.state.3.bias"}


def test_layout_a_of_mixed_layouts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"both '_reward\.2\.weight' in layout \(a\)"):
        rename(state_c(state_a(), 2) | {"_reward.2.weight": torch.zeros(1)})
