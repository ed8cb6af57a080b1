"""Inputs from environments and from data, the errors of single matrices, and the choice of the mixed recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.config import Config
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.calibration import (
    Inputs,
    Sensitivity,
    mixed_recipe,
    played_inputs,
    sensitivities,
    stored_inputs,
)
from tdmpc2.quantization.recipes import OUTPUTS, RECIPES, is_matrix, output_errors, quantize_state
from tdmpc2.tasks import MT30, TaskSpec
from tests.helpers.runs import TASKS
from tests.helpers.toy_envs import FALLS


def predicted_errors(found: Iterable[Sensitivity], int8: Iterable[str]) -> dict[str, float]:
    """Predict errors in dB for each output, by adding the powers of the errors of single matrices."""
    chosen = set(int8)
    powers = [[10 ** (s.errors[name] / 10) for name in OUTPUTS] for s in found if s.matrix in chosen]
    with np.errstate(divide="ignore"):
        decibels = 10 * np.log10(np.array(powers).reshape(-1, len(OUTPUTS)).sum(0))
    return dict(zip(OUTPUTS, decibels.tolist(), strict=True))


def model_of(cfg: Config) -> WorldModel:
    generator = torch.Generator().manual_seed(0)
    model = WorldModel(cfg, generator).requires_grad_(False)
    for name, param in model.named_parameters():
        if param.ndim > 1 and not name.startswith("_task_emb"):
            param.normal_(0, 0.3, generator=generator)
    model.reset_target()
    return model


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_played_inputs_cover_every_task_and_both_players(tiny_cfg: Config) -> None:
    model = model_of(tiny_cfg.replace(tasks=("cartpole-balance", "hopper-hop")))
    first, second = (played_inputs(model, 20, seed=3) for _ in range(2))
    assert first.task is not None
    assert first.task.tolist() == [MT30.index("cartpole-balance")] * 10 + [MT30.index("hopper-hop")] * 10
    assert (first.obs.shape, first.action.shape) == ((20, 24), (20, 6))
    for rows, (obs_dim, action_dim) in ((slice(10), (5, 1)), (slice(10, 20), (15, 4))):
        assert first.obs[rows, :obs_dim].any(0).sum() >= obs_dim - 2  # a hopper's touch sensors may be silent
        assert first.action[rows, :action_dim].all()
        assert not first.obs[rows, obs_dim:].any()
        assert not first.action[rows, action_dim:].any()
    assert len(first.obs.unique(dim=0)) == 20
    assert torch.equal(first.obs, second.obs)
    assert torch.equal(first.action, second.action)
    assert first.source == "20 rows of 2 tasks, played half by the policy, half at random"

    def surprise(action: Tensor, rows: slice) -> float:
        z = model.encode(first.obs[rows], first.task[rows])
        mean = model.pi(z, first.task[rows], torch.zeros(5, 6))[1]["mean"]
        return float((action[rows, :4] - mean[:, :4]).abs().mean())

    assert surprise(first.action, slice(10, 15)) < 0.4 < surprise(first.action, slice(15, 20))


def test_played_inputs_of_short_episodes_are_first_observations() -> None:
    cfg = Config(task=FALLS, task_specs=(TaskSpec(FALLS, 4, 2, 9),), model_size=None, enc_dim=8, mlp_dim=8,
                 latent_dim=8, num_bins=11)  # fmt: skip
    inputs = played_inputs(model_of(cfg), 6)
    assert inputs.task is None
    assert inputs.obs.shape == (6, 4)
    assert inputs.obs[:, 1].tolist() == [0] * 6  # all are first observations of episodes
    assert len(inputs.obs[:, 0].unique()) == 6


def test_played_inputs_skip_unplayable_tasks_and_say_so(without_meta_world: None) -> None:
    cfg = Config(task="mt80", tasks=("mw-reach", "pendulum-spin", "mw-push"), model_size=None, enc_dim=8, mlp_dim=8,
                 latent_dim=8, num_bins=11)  # fmt: skip
    inputs = played_inputs(model_of(cfg), 8)
    assert inputs.task is not None
    assert inputs.task.unique().tolist() == [cfg.task_names.index("pendulum-spin")]
    assert len(inputs.obs) == 8
    assert inputs.source.startswith("8 rows of 1 tasks, played")
    assert "; 2 tasks left out: Task 'mw-reach'" in inputs.source


def test_played_inputs_without_environments_are_normal_rows() -> None:
    cfg = Config(task="unnamed", task_specs=(TaskSpec("unnamed", 7, 2),), model_size=None, enc_dim=8, mlp_dim=8,
                 latent_dim=8, num_bins=11)  # fmt: skip
    inputs = played_inputs(model_of(cfg), 50)
    assert (inputs.obs.shape, inputs.action.shape, inputs.task) == ((50, 7), (50, 2), None)
    assert 0.8 < float(inputs.obs.std()) < 1.2
    assert float(inputs.action.abs().max()) <= 1
    assert inputs.source.startswith("50 standard-normal rows")
    assert "'unnamed'" in inputs.source


@pytest.mark.parametrize("form", ["chunks", "store"])
def test_stored_inputs_are_rows_of_the_data(data_dir: Path, tmp_path: Path, tiny_cfg: Config, form: str) -> None:
    directory = data_dir
    if form == "store":
        from tdmpc2.data.store.importer import import_episodes

        directory = tmp_path / "store"
        import_episodes([data_dir], directory, "mt30", tiny_cfg.task_specs, quiet=True)
        assert len(EpisodeStore.open(directory).task) == 6
    cfg = tiny_cfg.replace(tasks=TASKS)
    before = sorted(path.name for path in directory.iterdir())
    inputs = stored_inputs(cfg, str(directory), 40)
    assert sorted(path.name for path in directory.iterdir()) == before
    assert inputs.task is not None
    assert set(inputs.task.tolist()) == set(cfg.task_ids)
    assert (inputs.obs.shape, inputs.action.shape) == ((40, 24), (40, 6))
    assert inputs.action.isfinite().all()
    assert inputs.source == f"40 rows of 2 tasks from {directory}"
    with pytest.raises(ValueError, match="has no episodes of walker-walk"):
        stored_inputs(cfg.replace(tasks=("walker-walk",)), str(directory))


# -- sensitivity ------------------------------------------------------------------------------------------------------


def test_sensitivity_of_one_matrix_disturbs_what_follows_it(tiny_cfg: Config) -> None:
    model = model_of(tiny_cfg.replace(tasks=("pendulum-spin",), mlp_dim=48, latent_dim=48, enc_dim=48))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = played_inputs(model, 40)
    found = sensitivities(model, inputs)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    matrices = {n for n, w in before.items() if not n.startswith("_target_Qs") and is_matrix(n, w)}
    assert {s.matrix for s in found} == matrices
    touched = {"encoder": set(OUTPUTS), "dynamics": {"next_latent"}, "reward": {"reward"}, "pi": {"policy"}}
    for s in found:
        expected = touched.get(s.matrix.split(".")[0].removeprefix("_"), {"value"})
        assert {name for name, error in s.errors.items() if error > -math.inf} == expected
        assert all(error < -15 for error in s.errors.values()), s
    half, int8 = (quantize_state(before, RECIPES[name]) for name in ("fp16", "int8"))
    saved = sum(s.bytes_saved for s in found if s.matrix != "_encoder.state.0.weight")
    assert saved == sum(w.nbytes for w in half.values()) - sum(w.nbytes for w in int8.values())

    chosen = "_dynamics.1.weight"
    alone = WorldModel(model.cfg).requires_grad_(False)
    alone.load_state_dict(before)
    set_precision(alone, lambda name: "int8" if name == chosen else "fp32")
    error = output_errors(model, alone, *inputs[:3])["next_latent"]
    assert error == next(s.errors["next_latent"] for s in found if s.matrix == chosen)


errors = st.one_of(st.just(-math.inf), st.floats(-80, 5), st.just(math.inf))
rows = st.builds(
    lambda saved, values: (saved, dict(zip(OUTPUTS, values, strict=True))),
    st.integers(1, 1000),
    st.tuples(*[errors] * len(OUTPUTS)),
)
found_lists = st.lists(rows, max_size=7).map(
    lambda items: [Sensitivity(f"_reward.{i}.weight", *item) for i, item in enumerate(items)]
)
limits = st.floats(-70, 0)


def saved_by(found: list[Sensitivity], int8: frozenset[str]) -> int:
    return sum(s.bytes_saved for s in found if s.matrix in int8)


@settings(deadline=None)
@given(found_lists, limits)
def test_choose_mixed_is_the_best_within_the_limit(found: list[Sensitivity], limit: float) -> None:
    recipe = mixed_recipe(found, limit)
    assert recipe.name == "mixed"
    assert all(error <= limit + 1e-9 for error in predicted_errors(found, recipe.int8).values())
    names = [s.matrix for s in found]
    choices = (frozenset(c) for n in range(len(names) + 1) for c in itertools.combinations(names, n))
    allowed = (c for c in choices if all(error <= limit - 1e-9 for error in predicted_errors(found, c).values()))
    assert saved_by(found, recipe.int8) >= max(saved_by(found, choice) for choice in allowed)


@settings(deadline=None)
@given(found_lists, limits, limits)
def test_choose_mixed_with_wider_limit_saves_no_less(found: list[Sensitivity], a: float, b: float) -> None:
    saved = [saved_by(found, mixed_recipe(found, limit).int8) for limit in sorted((a, b))]
    assert saved[0] <= saved[1]


def test_choose_mixed_handles_observing_ties_and_many_matrices() -> None:
    exact = dict.fromkeys(OUTPUTS, -math.inf)
    assert mixed_recipe([Sensitivity("_encoder.state.0.weight", 9, exact)]).int8 == frozenset()
    noisy, calm = ({**exact, "reward": error} for error in (-41.0, -45.0))
    two = [Sensitivity("_reward.0.weight", 5, noisy), Sensitivity("_reward.1.weight", 5, calm)]
    assert mixed_recipe(two).int8 == {"_reward.1.weight"}  # together they exceed the limit
    many = [Sensitivity(f"_encoder.state.{i}.weight", i, exact) for i in range(1, 31)]
    assert mixed_recipe(many).int8 == {s.matrix for s in many[-16:]}
    assert mixed_recipe([]).int8 == frozenset()


def test_sensitivity_of_an_episodic_model_has_the_termination_head() -> None:
    """Its matrices used to be int8 in every mixed file, since no output that was measured depended on them."""
    sizes = {"model_size": None, "enc_dim": 48, "mlp_dim": 48, "latent_dim": 48, "num_q": 2}
    cfg = Config(task="cartpole-balance", mode="online", episodic=True, device="cpu", **sizes)
    model, draw = model_of(cfg), torch.Generator().manual_seed(1)
    obs, action = torch.randn(20, cfg.obs_dim, generator=draw), torch.rand(20, cfg.action_dim, generator=draw)
    found = {s.matrix: s.errors for s in sensitivities(model, Inputs(obs, action, None, "here"))}
    of_head = [errors for matrix, errors in found.items() if matrix.startswith("_termination.")]
    assert of_head
    assert all({name for name, e in errors.items() if e > -math.inf} == {"termination"} for errors in of_head)
    strict = mixed_recipe([Sensitivity(matrix, 9, errors) for matrix, errors in found.items()], -200.0)
    assert not strict.int8
