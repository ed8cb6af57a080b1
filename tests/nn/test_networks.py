"""The table of the world model's networks, and looking up tasks."""

from __future__ import annotations

import pytest
import torch

from tdmpc2.checkpoints.files import formats_of
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel


@pytest.mark.parametrize("task", ["mt30", "cartpole-balance"])
def test_networks_name_every_weight_matrix_of_a_checkpoint(tiny_cfg: Config, task: str) -> None:
    model = WorldModel(tiny_cfg.replace(task=task))
    named = [matrix for network in model.networks() for matrix in network.matrices]
    assert named == [name for name in formats_of(model.state_dict()) if not name.startswith("_target_Qs.")]


@pytest.mark.parametrize("task", ["mt30", "cartpole-balance"])
def test_networks_inputs_add_up_to_the_width_of_the_first_layer(tiny_cfg: Config, task: str) -> None:
    cfg = tiny_cfg.replace(task=task)
    model = WorldModel(cfg)
    task_dim = cfg.task_dim if cfg.multitask else 0
    widths = {"obs": cfg.obs_dim, "latent": cfg.latent_dim, "task": task_dim, "action": cfg.action_dim}
    for network in model.networks():
        first = model.state_dict()[network.matrices[0]]
        assert first.shape[-1] == sum(widths[part] for part in network.inputs), network.name


def test_networks_only_the_encoder_observes(tiny_cfg: Config) -> None:
    observing = [network.name for network in WorldModel(tiny_cfg).networks() if network.observes]
    assert observing == ["_encoder.state"]


@pytest.fixture
def model(tiny_cfg: Config) -> WorldModel:
    """Make a model with an embedding of norm below one for task 0 and above one for task 1."""
    model = WorldModel(tiny_cfg, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model._task_emb.weight[1] *= 1000
    return model


def test_context_does_not_write_to_the_model(model: WorldModel) -> None:
    """Every look-up used to rescale the table of embeddings, so that evaluating a model changed it."""
    before, version = model._task_emb.weight.clone(), model._task_emb.weight._version
    embedding = model.context(torch.arange(2)).embedding
    assert embedding is not None
    assert model._task_emb.weight._version == version
    assert torch.equal(model._task_emb.weight, before)
    assert torch.equal(embedding[0], before[0])
    assert float(embedding[1].detach().norm()) == pytest.approx(1, abs=1e-6)


def test_context_reads_what_training_would_write(model: WorldModel) -> None:
    read = model.context(torch.arange(2)).embedding
    written = model.context(torch.arange(2), train=True).embedding
    assert read is not None
    assert written is not None
    assert torch.equal(read, written)
    assert torch.equal(model._task_emb.weight[:2], written)


def test_context_for_training_leaves_other_tasks_alone(model: WorldModel) -> None:
    before = model._task_emb.weight.clone()
    model.context(torch.tensor([0]), train=True)
    assert torch.equal(model._task_emb.weight, before)
