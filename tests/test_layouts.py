"""Layouts (a), (b), (c) and quantised forms, against states built name by name from the specification."""

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

from tdmpc2.checkpoints.layouts import (
    check_state,
    infer_config,
    infer_sizes,
    layout_of,
    rename,
    size_keys,
    to_layout_a,
    to_layout_b,
)
from tdmpc2.config import MODEL_SIZES, Config
from tdmpc2.nn.world_model import WorldModel

HEADS = ("_Qs", "_target_Qs")
PARTS = ("weight", "bias", "ln.weight", "ln.bias")


def shapes_a(
    *, enc=8, enc_layers=2, mlp=16, latent=8, num_q=2, tasks=30, emb=4, obs=5, action=3, bins=11
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of layout (a), written down from specification section 15."""
    emb = emb if tasks else 0
    nets = {
        "_encoder.state": ([obs + emb, *[enc] * (enc_layers - 1), latent], True),
        "_dynamics": ([latent + emb + action, mlp, mlp, latent], True),
        "_reward": ([latent + emb + action, mlp, mlp, bins], False),
        "_pi": ([latent + emb, mlp, mlp, 2 * action], False),
    }
    shapes: dict[str, tuple[int, ...]] = {"_task_emb.weight": (tasks, emb)} if tasks else {}
    for net, (dims, last_norm) in nets.items():
        for i, (n_in, n_out) in enumerate(zip(dims, dims[1:], strict=False)):
            shapes |= {f"{net}.{i}.weight": (n_out, n_in), f"{net}.{i}.bias": (n_out,)}
            if i < len(dims) - 2 or last_norm:
                shapes |= {f"{net}.{i}.ln.weight": (n_out,), f"{net}.{i}.ln.bias": (n_out,)}
    joint = latent + emb + action
    head = [(mlp, joint), *[(mlp,)] * 3, (mlp, mlp), *[(mlp,)] * 3, (bins, mlp), (bins,)]
    return shapes | {f"{h}.params.{k}": (num_q, *shape) for h in HEADS for k, shape in enumerate(head)}


def state_a(seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=gen) for name, shape in shapes_a(**sizes).items()}


def meta_a(size: int, task: str) -> dict[str, Tensor]:
    """A model of a published size without memory, with the sizes of specification section 1."""
    widths = MODEL_SIZES[size]
    emb = 96 if task == "mt80" or size in (1, 317) else 64
    dims = {"mt30": (30, 24, 6), "mt80": (80, 39, 6), "walker-walk": (0, 24, 6)}[task]
    shapes = shapes_a(
        enc=widths["enc_dim"],
        enc_layers=widths["num_enc_layers"],
        mlp=widths["mlp_dim"],
        latent=512 if (size, task) == (19, "mt30") else widths["latent_dim"],
        num_q=widths["num_q"],
        tasks=dims[0],
        emb=emb,
        obs=dims[1],
        action=dims[2],
        bins=101,
    )
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def state_c(a: dict[str, Tensor], encoder_layers: int) -> dict[str, Tensor]:
    """Layout (c) of a layout (a) state, by the pairs of the specification's table."""
    pairs = {"_dynamics.0.0": "_dynamics.0", "_dynamics.0.3": "_dynamics.1", "_dynamics.0.6": "_dynamics.2"}
    pairs |= {"_dynamics.0.1": "_dynamics.0.ln", "_dynamics.0.4": "_dynamics.1.ln", "_dynamics.1": "_dynamics.2.ln"}
    for net in ("_reward", "_pi"):
        pairs |= {f"{net}.0": f"{net}.0", f"{net}.3": f"{net}.1", f"{net}.6": f"{net}.2"}
        pairs |= {f"{net}.1": f"{net}.0.ln", f"{net}.4": f"{net}.1.ln"}
    for i in range(encoder_layers):
        pairs[f"_encoder.state.{3 * i + 1}"] = f"_encoder.state.{i}"
        pairs[f"_encoder.state.{3 * i + 2}"] = f"_encoder.state.{i}.ln"
    c = {f"{new}.{end}": a[f"{old}.{end}"] for new, old in pairs.items() for end in ("weight", "bias")}
    return c | {name: a[name] for name in a if name.startswith((*HEADS, "_task_emb"))}


def quantised(a: dict[str, Tensor]) -> dict[str, Tensor]:
    """This project's int8 form: matrices int8 with one scale per row and head, the rest half precision, no targets."""
    state: dict[str, Tensor] = {}
    for name, tensor in a.items():
        if name.startswith("_target_Qs"):
            continue
        is_matrix = tensor.ndim == 3 or (tensor.ndim == 2 and not name.startswith(("_Qs", "_task_emb")))
        if is_matrix:
            scale = tensor.abs().amax(-1, keepdim=True) / 127
            state |= {name: (tensor / scale).round().to(torch.int8), f"{name}.scale": scale}
        else:
            state[name] = tensor.half()
    return state


def assert_same(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        if isinstance(tensor, Tensor):
            assert have[name].dtype == tensor.dtype, name
            assert torch.equal(have[name], tensor), name
        else:
            assert have[name] == tensor, name


sizes_drawn = st.fixed_dictionaries(
    {
        "enc": st.integers(1, 12),
        "enc_layers": st.integers(2, 5),
        "mlp": st.integers(1, 12),
        "latent": st.integers(1, 12),
        "num_q": st.sampled_from([1, 2, 5, 8]),
        "tasks": st.sampled_from([0, 1, 3, 30, 80]),
        "emb": st.integers(1, 6),
        "obs": st.integers(1, 9),
        "action": st.integers(1, 7),
        "bins": st.integers(2, 12),
    }
)


@settings(max_examples=25, deadline=None)
@given(sizes=sizes_drawn, seed=st.integers(0, 1000))
def test_round_trips_are_exact(sizes: dict[str, int], seed: int) -> None:
    a = state_a(seed, **sizes)
    before = dict(a)
    masks = torch.ones(sizes["tasks"], sizes["action"]) if sizes["tasks"] else None
    b = to_layout_b(a, masks, -10, 12)
    c = state_c(a, sizes["enc_layers"])
    assert [layout_of(x) for x in (a, b, c)] == ["a", "b", "c"]
    copies = dict(b), dict(c)
    assert_same(to_layout_a(b), a)
    assert_same(to_layout_a(c), a)
    assert_same(to_layout_a(a), a)
    assert (dict(b), dict(c)) == copies  # dict equality of the same objects: nothing was replaced
    assert all(a[name] is before[name] for name in before)
    assert len(a) == len(before)


@settings(max_examples=25, deadline=None)
@given(sizes=sizes_drawn)
def test_sizes_are_read_from_every_form(sizes: dict[str, int]) -> None:
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


def test_the_world_model_has_layout_a() -> None:
    model = WorldModel(Config(task="mt30", model_size=1))
    state = model.state_dict()
    assert len(state) == 61
    want = {name: tuple(tensor.shape) for name, tensor in meta_a(1, "mt30").items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == want
    assert layout_of(state) == "a"


class UpstreamLike(nn.Module):
    """The head containers of current TD-MPC2: tensordict parameters, one of them sharing memory with another."""

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
def test_layout_b_opens_in_tensordict_heads() -> None:
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
    assert_same(to_layout_a(body | dict(module.state_dict())), a)


def test_layout_b_entries() -> None:
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


def test_duplicates_of_autumn_2024_are_dropped() -> None:
    a = state_a()
    b = to_layout_b(a, torch.ones(30, 3), -10, 12)
    wrong = {
        f"{group}.{name.removeprefix('_target_Qs_params.')}": value + 1 if isinstance(value, Tensor) else value
        for name, value in b.items()
        if name.startswith("_target_Qs_params.")
        for group in ("_detach_Qs.params", "_target_Qs.params")
    }
    assert len(wrong) == 24
    assert_same(to_layout_a(b | wrong), a)
    assert_same(to_layout_a(wrong | b), a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_forms_become_float32(dtype: torch.dtype) -> None:
    a = {name: tensor.to(dtype) for name, tensor in state_a().items()}
    assert_same(to_layout_a(a), {name: tensor.float() for name, tensor in a.items()})


def test_own_int8_form() -> None:
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


def test_missing_target_heads_are_independent_copies() -> None:
    a = state_a()
    new = to_layout_a({name: tensor for name, tensor in a.items() if not name.startswith("_target_Qs")})
    assert new.keys() == a.keys()
    for k in range(10):
        assert torch.equal(new[f"_target_Qs.params.{k}"], a[f"_Qs.params.{k}"])
        assert new[f"_target_Qs.params.{k}"].data_ptr() != a[f"_Qs.params.{k}"].data_ptr()


def test_some_missing_target_heads_are_reported() -> None:
    a = state_a()
    partial = {name: tensor for name, tensor in a.items() if name != "_target_Qs.params.3"}
    with pytest.raises(ValueError, match=r"incomplete.* missing: _target_Qs\.params\.3$"):
        check_state(to_layout_a(partial), a, "x.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_qint8_with_scale_and_zero_point() -> None:
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
def test_unusable_entries_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_layout_a(state_a() | change)


def test_unknown_layout_lists_names() -> None:
    with pytest.raises(ValueError, match=r"found conv\.0, conv\.1, conv\.2, conv\.3 and 5 more; expected"):
        layout_of({f"conv.{i}": torch.zeros(1) for i in range(9)})
    with pytest.raises(ValueError, match="found nothing"):
        layout_of({})


def test_names_without_a_rule_stay_for_the_comparison_to_report() -> None:
    a = state_a(tasks=0)
    c = state_c(a, 2) | {"_encoder.rgb.0.weight": torch.zeros(1), "_encoder.state.3.bias": torch.zeros(1)}
    assert set(rename(c)) - set(a) == {"_encoder.rgb.0.weight", "_encoder.state.3.bias"}


def test_names_of_two_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both '_reward\.2\.weight' in layout \(a\)"):
        rename(state_c(state_a(), 2) | {"_reward.2.weight": torch.zeros(1)})


TRAINABLE = {1: 1_426_427, 5: 5_241_066, 19: 16_031_210, 48: 48_242_410, 317: 317_316_889}


@pytest.mark.parametrize("task", ["mt30", "mt80", "walker-walk"])
@pytest.mark.parametrize("size", MODEL_SIZES)
def test_configuration_of_every_published_size(size: int, task: str) -> None:
    state = meta_a(size, task)
    if task == "mt30":
        assert sum(t.numel() for name, t in state.items() if not name.startswith("_target")) == TRAINABLE[size]
    assert infer_config(state, task) == Config(task=task, model_size=size)
    if task != "walker-walk":
        assert infer_config(state) == Config(task=task, model_size=size)
        assert infer_config(state, "cup-spin").task == task


def test_nonstandard_widths_are_explicit() -> None:
    two_heads = {n: t[:2] if "Qs" in n else t for n, t in meta_a(5, "mt30").items()}
    config = infer_config(two_heads)
    assert (config.model_size, config.num_q, config.latent_dim, config.task_dim) == (None, 2, 512, 64)
    again = WorldModel(Config(task="mt30", model_size=None, num_bins=21, latent_dim=16, enc_dim=8, mlp_dim=24, num_q=3))
    config = infer_config(again.state_dict())
    assert (config.model_size, config.num_bins, config.num_q, config.mlp_dim) == (None, 21, 3, 24)
    check_state(again.state_dict(), WorldModel(config).state_dict(), "x.pt")


def test_log_std_bounds_of_layout_b_are_used() -> None:
    state = to_layout_b(meta_a(1, "mt30"), None, -8, 9)
    config = infer_config(state)
    assert (config.log_std_min, config.log_std_max) == (-8.0, 1.0)


@pytest.mark.parametrize(
    ("state", "task", "message"),
    [
        (lambda: meta_a(1, "walker-walk"), None, "single-task .* 24 and actions of 6.*for example task=walker-stand"),
        (lambda: meta_a(1, "walker-walk"), "mt30", "task=mt30 is a task set"),
        (lambda: meta_a(1, "walker-walk"), "cheetah-run", "task=cheetah-run has 17 and 6, but .* 24 and actions of 6"),
        (lambda: meta_a(1, "mt30"), "mt80", "'mw-assembly' is not among the tasks of the file"),
        (lambda: meta_a(1, "mt30"), "cup-spinn", "Did you mean 'cup-spin'"),
        (lambda: state_a(tasks=7), None, "7 tasks and no configuration; known task sets: mt30"),
        (lambda: {k: v for k, v in state_a().items() if k != "_pi.2.weight"}, None, "'_pi.2.weight' is missing"),
    ],
)
def test_infer_config_errors(state: Any, task: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer_config(state(), task)


def test_check_state_accepts_itself_and_lists_differences() -> None:
    expected = meta_a(1, "mt30")
    check_state(dict(expected), expected, "x.pt")
    odd = {f"extra.{i}": torch.zeros(1) for i in range(11)}
    with pytest.raises(ValueError, match=r"x\.pt does not .* unexpected: extra\.0, .*extra\.7 and 3 more$"):
        check_state(expected | odd, expected, "x.pt")
    with pytest.raises(ValueError, match=r"missing: _pi\.0\.bias$"):
        check_state({k: v for k, v in expected.items() if k != "_pi.0.bias"}, expected, "x.pt")


@pytest.mark.parametrize(
    ("file", "model", "fix"),
    [
        (lambda: meta_a(1, "mt80"), lambda: meta_a(1, "mt30"), r"80 tasks \(mt80\), the model 30 .*: set task=mt80\. "),
        (lambda: meta_a(19, "mt30"), lambda: meta_a(19, "mt80"), r"It has 30 tasks .*: set task=mt30\. shapes"),
        (lambda: meta_a(1, "mt30"), lambda: meta_a(1, "walker-walk"), "the model a single task: set task=mt30"),
        (lambda: meta_a(1, "walker-walk"), lambda: meta_a(1, "mt30"), "It has a single task, the model 30"),
        (
            lambda: meta_a(5, "mt30"),
            lambda: meta_a(1, "mt30"),
            r"latent_dim 512 instead of 128, num_q 5 instead of 2, .*set model_size=5\.",
        ),
        (
            lambda: {n: t[:2] if "Qs" in n else t for n, t in meta_a(5, "mt30").items()},
            lambda: meta_a(5, "mt30"),
            r"\(num_q 2 instead of 5\): set model_size=null enc_dim=256 .* num_q=2 task_dim=64\.",
        ),
        (lambda: state_a(num_q=3), lambda: state_a(num_q=4), r"\(num_q 3 instead of 4\): set num_q=3\. shapes"),
        (lambda: state_a(bins=9), lambda: state_a(bins=11), r"\(num_bins 9 instead of 11\): set num_bins=9\. shapes"),
        (lambda: state_a(tasks=0, obs=7), lambda: state_a(tasks=0), "have 7 and 3 entries, the model's 5 and 3: set"),
        (lambda: state_a() | {"_termination.0.bias": torch.zeros(1)}, state_a, "episodic=true"),
        (lambda: {"x": torch.zeros(1)}, state_a, "incomplete or another architecture"),
    ],
)
def test_check_state_names_the_likely_fix(file: Any, model: Any, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        check_state(file(), model(), "x.pt")


@pytest.mark.parametrize("task", ["mt30", "mt80", "walker-walk"])
def test_size_keys_name_published_sizes(task: str) -> None:
    for size in MODEL_SIZES:
        assert size_keys(infer_sizes(meta_a(size, task))) == {"model_size": size}
