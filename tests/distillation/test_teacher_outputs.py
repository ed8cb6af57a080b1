"""The teacher computes what the targets need, and each output only once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tdmpc2.config import Config
from tdmpc2.distillation import outputs
from tests.helpers.agents import random_batch
from tests.helpers.distillation import LIVE, decoded, make_expert

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    ("targets", "steps"),
    [
        (("reward",), (0, 1)),
        (("reward_horizon",), (0, 3)),
        (("value_horizon",), (0, 3)),
        (("value", "reward_horizon"), (0, 3)),
        (("reward", "value_horizon"), (0, 3)),
        (("reward_logits", "policy", "value"), (0, 1)),
        (("next_state_linear",), (1, 2)),
        (("next_state_pca", "next_state_linear"), (1, 2)),
        (("value", "next_state_pca"), (0, 2)),
        (tuple(name for name in LIVE if name != "ranking"), (0, 3)),  # that one is asked for apart
    ],
)
def test_teacher_outputs_compute_only_what_targets_need(
    tiny_cfg: Config, targets: tuple[str, ...], steps: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expert, batch = make_expert(tiny_cfg), random_batch(tiny_cfg, 0)
    model = expert.model
    encoded, original = [], model.encode
    monkeypatch.setattr(model, "encode", lambda obs, task: encoded.append(obs) or original(obs, task))
    got = outputs.teacher_outputs(expert.model, targets, batch.obs, batch.action, batch.task)
    assert len(encoded) == 1
    assert torch.equal(encoded[0], batch.obs[steps[0] : steps[1]])
    monkeypatch.undo()
    model.context(batch.task, train=True)  # rescales the embedding, as the update would
    z = [model.encode(batch.obs[t], batch.task) for t in range(4)]
    if "reward" in targets or "reward_horizon" in targets:
        assert got.reward is not None
        assert len(got.reward) == (3 if "reward_horizon" in targets else 1)
        for t, reward in enumerate(got.reward):
            for b in range(8):
                logits = model.reward(z[t][b], batch.action[t, b], batch.task[b])
                assert float(reward[b]) == pytest.approx(decoded(logits.double()), abs=1e-5)
    if "reward_logits" in targets:
        assert_close(got.reward_logits, model.reward(z[0], batch.action[0], batch.task))
    if "value" in targets or "value_horizon" in targets:
        assert got.value is not None
        assert len(got.value) == (3 if "value_horizon" in targets else 1)
        for t, value in enumerate(got.value):
            heads = model.Q(z[t], batch.action[t], batch.task, "all").double()
            slow = [np.mean([decoded(head[b]) for head in heads]) for b in range(8)]
            assert_close(value[:, 0], torch.tensor(slow, dtype=torch.float32), rtol=1e-4, atol=1e-4)
        assert got.value.std() > 0.1
    if set(targets) & {"next_state_linear", "next_state_pca"}:
        assert_close(got.next_latent, z[1])
    if "policy" in targets:
        assert got.policy is not None
        assert_close(torch.tanh(got.policy[0]), model.pi(z[0], batch.task)[1]["mean"])
        assert_close(got.policy[1], model.pi(z[0], batch.task)[1]["log_std"])
    fields = {
        "reward": ("reward", "reward_horizon"),
        "value": ("value", "value_horizon"),
        "next_latent": ("next_state_linear", "next_state_pca"),
    }
    for name, output in got._asdict().items():
        assert (output is not None) == bool(set(targets) & set(fields.get(name, (name,)))), name
        for tensor in output if isinstance(output, tuple) else [output]:
            assert tensor is None or not tensor.requires_grad


def test_teacher_reward_is_bitwise_that_of_first_step(tiny_cfg: Config) -> None:
    expert, batch = make_expert(tiny_cfg), random_batch(tiny_cfg, 0)
    expert.model.context(batch.task, train=True)
    got = outputs.teacher_outputs(expert.model, ("reward",), batch.obs, batch.action, batch.task).reward
    assert torch.equal(
        got, outputs.teacher_columns(expert.model, ("reward",), batch.obs[:1], batch.action[:1], batch.task)["reward"]
    )
    assert torch.equal(
        got[0], outputs.teacher_columns(expert.model, ("reward",), batch.obs[0], batch.action[0], batch.task)["reward"]
    )
