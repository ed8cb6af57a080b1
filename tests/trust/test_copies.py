"""Agents in other processes, copies of agents, and agents under another default dtype."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2 import losses
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tests.helpers.agents import random_batch
from tests.helpers.reference import shared_file

OBS = np.linspace(-1, 1, 24, dtype=np.float32)


def actions(agent: Any, steps: int = 3) -> np.ndarray:
    return np.stack([agent.act(OBS, t0=step == 0, task=3, eval_mode=False) for step in range(steps)])


def act_in_child(pipe: Any, agent: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(actions(agent))


def sent(agent: Any) -> Any:
    """Pickle an object as multiprocessing does for a spawned process, and unpickle it here."""
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(agent)
    return pickle.loads(buffer.getvalue())


# -- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_agent_in_a_process_of_its_own_acts_as_here(tiny_cfg: Config, method: Any) -> None:
    """Generators cannot be pickled, so sending an agent used to fail with "unable to resize file"."""
    agent = TDMPC2(tiny_cfg)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=act_in_child, args=(there, agent))
    process.start()
    assert here.poll(120)
    found = here.recv()
    process.join()
    np.testing.assert_array_equal(found, actions(agent))


@pytest.mark.parametrize("how", [copy.deepcopy, sent, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_copied_agent_acts_and_learns_as_the_first(tiny_cfg: Config, how: Any) -> None:
    """The states of random numbers and optimisers are copied together with the weights."""
    agent = TDMPC2(tiny_cfg)
    agent.update(random_batch(tiny_cfg, 1))
    agent.act(OBS, t0=True, task=3)
    # A process shares the weights that are sent to it, so this one takes its own before either goes on.
    other = copy.deepcopy(how(agent))
    assert other.generator is other._player.generator is not agent.generator
    for step in range(2):
        first, second = (each.update(random_batch(tiny_cfg, 2 + step)) for each in (agent, other))
        assert all(torch.equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(actions(agent), actions(other))
    state, copied = agent.training_state()["generator"], other.training_state()["generator"]
    assert torch.equal(state, copied)
    agent.act(OBS, task=3, eval_mode=False)
    assert not torch.equal(agent.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("how", [copy.deepcopy, sent])
def test_copied_player_goes_on_with_its_plan(tiny_cfg: Config, how: Any) -> None:
    player = TDMPC2(tiny_cfg).player(seed=4)
    player.act(OBS, True, task=3)
    other = how(player)
    for _ in range(2):
        np.testing.assert_array_equal(*(each.act(OBS, task=3, eval_mode=False) for each in (player, other)))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_copied_agent_of_lower_precision_acts_as_the_first(precision: str) -> None:
    path = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    agent = load_agent(path, device="cpu", precision=precision, num_samples=32, num_elites=8, quiet=True)
    agent.act(OBS, t0=True, task=3)
    other = sent(agent)
    assert other.precision == precision
    np.testing.assert_array_equal(actions(agent, 2), actions(other, 2))


def test_copied_agent_with_compiled_update_gets_one_of_its_own(
    tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code cannot be pickled, so the copy compiles its own and rounds in the same way."""
    agent = TDMPC2(tiny_cfg)
    monkeypatch.setattr("tdmpc2.acceleration.compiled_update.can_compile", lambda device: True)
    models = []

    def compiled(model: Any, device: Any) -> tuple[Any, Any]:
        models.append(model)
        return (lambda *args: losses.model_losses(*args)), (lambda *args: losses.policy_loss(*args))

    monkeypatch.setattr("tdmpc2.acceleration.compiled_update.compiled", compiled)
    agent.cfg = tiny_cfg.replace(compile="true")
    agent.compile_update()
    other = copy.deepcopy(sent(agent))
    assert other.update_compiled
    assert models == [agent.model, models[1], other.model]
    first, second = (each.update(random_batch(tiny_cfg, 2)) for each in (agent, other))
    assert torch.equal(first["total_loss"], second["total_loss"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_agent_with_threads_is_refused(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked agent used to wait forever for threads that a fork does not copy; with one thread it acts."""
    agent = TDMPC2(tiny_cfg)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    refused = r'copied by a fork.*multiprocessing.get_context\("spawn"\), or call torch.set_num_threads\(1\)'
    with pytest.raises(ValueError, match=refused):
        agent.act(OBS, t0=True, task=3)
    with pytest.raises(ValueError, match=refused):
        agent.update(random_batch(tiny_cfg, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    agent.act(OBS, t0=True, task=3)


# -- default dtype ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("targets", [(), ("reward", "value 0.2", "policy 0.2", "next_state_linear 0.1")])
def test_default_dtype_changes_nothing(tiny_cfg: Config, dtype: torch.dtype, targets: Any) -> None:
    """The default dtype used to make "fp32" weights float64, and float16 agents that could not act."""
    batch = random_batch(tiny_cfg, 1)
    cfg = tiny_cfg.replace(dropout=0.1, **({"distillation_targets": targets} if targets else {}))
    expected = everything(cfg, batch, bool(targets))
    torch.set_default_dtype(dtype)
    try:
        found = everything(cfg, batch, bool(targets))
    finally:
        torch.set_default_dtype(torch.float32)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert (found[name].dtype, name) == (value.dtype, name)
        assert torch.equal(found[name], value), name


def everything(cfg: Config, batch: Any, taught: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of an agent, losses and actions after two updates."""
    agent = TDMPC2(cfg, TDMPC2(cfg.replace(latent_dim=24, seed=7)) if taught else None)
    for _ in range(2):
        losses = agent.update(batch)
    tensors = {**losses, **dict(agent.model.named_buffers()), **agent.model.state_dict(), "scale": agent.scale}
    tensors["planned"] = torch.from_numpy(actions(agent))
    tensors["policy"] = torch.from_numpy(agent.player(mpc=False).act(OBS, True, task=3, eval_mode=False))
    return tensors


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "int8"])
def test_default_dtype_changes_no_loaded_agent(precision: str) -> None:
    """Loading under float64 used to raise "converted twice", or a KeyError in the kernels."""
    path = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    keys: dict[str, Any] = {"device": "cpu", "precision": precision, "num_samples": 32, "num_elites": 8, "quiet": True}
    expected = actions(load_agent(path, **keys), 1)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(actions(load_agent(path, **keys), 1), expected)
    finally:
        torch.set_default_dtype(torch.float32)
