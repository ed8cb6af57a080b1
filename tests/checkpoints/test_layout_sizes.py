"""The configuration and the sizes that are read from a state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tdmpc2.checkpoints.layouts import to_layout_b
from tdmpc2.checkpoints.sizes import check_state, infer_config, infer_sizes, size_keys
from tdmpc2.config import MODEL_SIZES, Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.layouts import meta_a, state_a

TRAINABLE = {1: 1_426_427, 5: 5_241_066, 19: 16_031_210, 48: 48_242_410, 317: 317_316_889}


@pytest.mark.parametrize("task", ["mt30", "mt80", "walker-walk"])
@pytest.mark.parametrize("size", MODEL_SIZES)
def test_infer_config_of_published_size_finds_it(size: int, task: str) -> None:
    state = meta_a(size, task)
    if task == "mt30":
        assert sum(t.numel() for name, t in state.items() if not name.startswith("_target")) == TRAINABLE[size]
    assert infer_config(state, task) == Config(task=task, model_size=size)
    if task != "walker-walk":
        assert infer_config(state) == Config(task=task, model_size=size)
        assert infer_config(state, "cup-spin").task == task


def test_infer_config_of_other_widths_names_them() -> None:
    two_heads = {n: t[:2] if "Qs" in n else t for n, t in meta_a(5, "mt30").items()}
    config = infer_config(two_heads)
    assert (config.model_size, config.num_q, config.latent_dim, config.task_dim) == (None, 2, 512, 64)
    again = WorldModel(Config(task="mt30", model_size=None, num_bins=21, latent_dim=16, enc_dim=8, mlp_dim=24, num_q=3))
    config = infer_config(again.state_dict())
    assert (config.model_size, config.num_bins, config.num_q, config.mlp_dim) == (None, 21, 3, 24)
    check_state(again.state_dict(), WorldModel(config).state_dict(), "x.pt")


def test_infer_config_of_layout_b_takes_log_std_bounds() -> None:
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
def test_infer_config_of_unusable_state_is_refused(state: Any, task: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer_config(state(), task)


def test_check_state_of_other_state_lists_differences() -> None:
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
        (lambda: meta_a(1, "mt80"), lambda: meta_a(1, "mt30"), r"80 tasks \(mt80\), the model 30 .*: set task=mt80\.$"),
        (lambda: meta_a(19, "mt30"), lambda: meta_a(19, "mt80"), r"It has 30 tasks .*: set task=mt30\.$"),
        (lambda: meta_a(1, "mt30"), lambda: meta_a(1, "walker-walk"), "the model a single task: set task=mt30"),
        (lambda: meta_a(1, "walker-walk"), lambda: meta_a(1, "mt30"), "It has a single task, the model 30"),
        (
            lambda: meta_a(5, "mt30"),
            lambda: meta_a(1, "mt30"),
            r"does not fit the model\. It has model_size=5, the model 1: set model_size=5\.$",
        ),
        (
            lambda: {n: t[:2] if "Qs" in n else t for n, t in meta_a(5, "mt30").items()},
            lambda: meta_a(5, "mt30"),
            r"\(num_q 2 instead of 5\): set model_size=null enc_dim=256 .* num_q=2 task_dim=64\.",
        ),
        (lambda: state_a(num_q=3), lambda: state_a(num_q=4), r"\(num_q 3 instead of 4\): set num_q=3\.$"),
        (lambda: state_a(bins=9), lambda: state_a(bins=11), r"\(num_bins 9 instead of 11\): set num_bins=9\.$"),
        (lambda: state_a(tasks=0, obs=7), lambda: state_a(tasks=0), "have 7 and 3 entries, the model's 5 and 3: set"),
        (lambda: state_a() | {"_termination.0.bias": torch.zeros(1)}, state_a, "episodic=true"),
        (lambda: {"x": torch.zeros(1)}, state_a, "incomplete or another architecture"),
    ],
)
def test_check_state_of_wrong_model_names_the_fix(file: Any, model: Any, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        check_state(file(), model(), "x.pt")


@pytest.mark.parametrize("task", ["mt30", "mt80", "walker-walk"])
def test_size_keys_of_published_size_name_it(task: str) -> None:
    for size in MODEL_SIZES:
        assert size_keys(infer_sizes(meta_a(size, task))) == {"model_size": size}
