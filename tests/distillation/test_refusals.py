"""Distillation targets and teachers that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.distillation.targets import TARGETS
from tdmpc2.training.teacher import asked_live
from tests.helpers.agents import random_batch
from tests.helpers.distillation import make_expert

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("rewards", r"'rewards' is not one of reward, .*policy, plan\. Did you mean 'reward'\?"),
        (["reward", "reward 0.1"], "'reward 0.1': 'reward' is there twice"),
        (["value -1"], r"'value -1': the weight -1\.0 must be between 0 and"),
        (["value nan"], r"the weight nan must be between 0 and"),
        (["value much"], r"'value much' is not 'NAME' or 'NAME WEIGHT', for example"),
        (["value 1 2"], r"'value 1 2' is not 'NAME' or"),
        ([], "must name at least one target; teacher_config=null"),
        ([" "], "'' is not one of"),
        (3, "distillation_targets=3 must be"),
    ],
)
def test_config_with_wrong_targets_is_refused(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cfg({"distillation_targets": targets})


def test_config_distillation_keys_are_checked() -> None:
    cfg = parse_cfg({"distillation_targets": "value 1e-1, reward", "distillation_weight": 2})
    assert list(cfg.distillation_terms.items()) == [("value", 0.1), ("reward", 2.0)]
    assert Config(**cfg.to_dict()) == cfg
    assert cfg.to_dict()["distillation_targets"] == ["value 1e-1", "reward"]
    with pytest.raises(ValueError, match=r"distillation_schedule=gaps is not one of constant, linear, cosine, gap"):
        Config(distillation_schedule="gaps")
    for target in TARGETS:
        keys = {"distillation_targets": ("value", target) if target != "value" else ("value",)}
        if TARGETS[target].cached_as:
            assert Config(distillation_cache="full", **keys).distillation_cache == "full"
            if not TARGETS[target].live:
                with pytest.raises(ValueError, match=rf"lazy computes as it trains, and .*{target} takes too long"):
                    Config(distillation_cache="lazy", **keys)
        else:
            assert asked_live(Config(distillation_cache="full", **keys))
            with pytest.raises(
                ValueError, match=rf"distillation_cache=lazy holds .*distillation_targets={target} needs"
            ):
                Config(distillation_cache="lazy", **keys)


def test_distillation_with_unfit_teacher_is_refused(tiny_cfg: Config) -> None:
    def refused(message: str, target: str, **changes: Any) -> None:
        teacher = TDMPC2(tiny_cfg.replace(**changes))
        TDMPC2(tiny_cfg, teacher)
        with pytest.raises(ValueError, match=message):
            TDMPC2(tiny_cfg.replace(distillation_targets=("reward", target)), teacher)

    refused(r"reward_logits needs .*\(101, -10\.0, 10\.0\) and the teacher's \(51,", "reward_logits", num_bins=51)
    refused(r"reward_logits needs .*the teacher's \(101, -10\.0, 8\.0\)", "reward_logits", vmax=8)
    refused(r"latent_dim of at least 16, the student's, but it is 8", "next_state_pca", latent_dim=8)


def test_distillation_says_in_what_a_task_differs(tiny_cfg: Config) -> None:
    """The names of the tasks were given, which are the same."""
    specs = (replace(tiny_cfg.task_specs[0], episode_length=7), *tiny_cfg.task_specs[1:])
    with pytest.raises(ValueError, match=r"id 0: episode_length of '.*' is 500 for the student and 7 for the teacher"):
        TDMPC2(tiny_cfg, TDMPC2(tiny_cfg.replace(task_specs=specs)))


def test_distillation_without_needed_output_is_refused(tiny_cfg: Config) -> None:
    keys: Callable[..., Config] = lambda *targets: tiny_cfg.replace(distillation_targets=targets)  # noqa: E731
    batch = random_batch(tiny_cfg, 0)._replace(teacher_reward=torch.zeros(1, 8, 1))
    with pytest.raises(ValueError, match=r"=value, policy: there is no teacher, and the batch has only teacher_reward"):
        TDMPC2(keys("reward", "value", "policy")).update(batch)
    with pytest.raises(ValueError, match="needs the teacher's reward of 3 steps, but teacher_reward has 1"):
        TDMPC2(keys("reward_horizon")).update(batch)
    assert "distillation_loss" not in TDMPC2(keys("value")).update(batch)  # no target uses the reward
    with pytest.raises(ValueError, match=r"next_state_pca: call agent\.distillation\.fit_pca first"):
        TDMPC2(keys("next_state_pca"), make_expert(tiny_cfg)).update(batch)
