"""Files of models that observe images: saved, loaded, inferred, and told from others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tdmpc2
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.sizes import infer_config
from tdmpc2.config import Config

SMALL = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 2, "num_samples": 8, "num_elites": 4,
    "num_pi_trajs": 2, "iterations": 1, "device": "cpu",
}  # fmt: skip


def test_save_of_pixel_agent_is_loaded_and_acts_alike(tmp_path: Path) -> None:
    agent = TDMPC2(Config(task="cup-catch", obs="rgb", **SMALL))
    agent.save(tmp_path / "x.pt")
    loaded = tdmpc2.load_agent(tmp_path / "x.pt", device="cpu", compile=False, quiet=True, mpc=False)
    assert (loaded.cfg.obs, loaded.cfg.obs_shape) == ("rgb", (9, 64, 64))
    obs = torch.randint(256, (2, 9, 64, 64), dtype=torch.uint8)
    expected = agent.model.policy_mean(agent.model.encode(obs)).detach()
    torch.testing.assert_close(loaded.act(obs, t0=True, eval_mode=True), expected)
    assert loaded.act(obs[0].numpy(), t0=True, eval_mode=True).shape == (2,)


@pytest.mark.parametrize("size", [1, 5])
def test_infer_config_of_pixel_weights_needs_the_task_only(size: int) -> None:
    cfg = Config(task="cup-catch", obs="rgb", model_size=size)
    state = TDMPC2(cfg).model.state_dict()
    assert infer_config(state, "cup-catch") == cfg
    with pytest.raises(ValueError, match="single-task model with images and actions of 2 entries"):
        infer_config(state)


def test_load_of_pixel_weights_into_a_model_of_states_names_the_key() -> None:
    pixels = TDMPC2(Config(task="cup-catch", obs="rgb", **SMALL)).model.state_dict()
    with pytest.raises(ValueError, match="It was trained with obs=rgb: set that"):
        TDMPC2(Config(task="cup-catch", **SMALL)).load(pixels)


def test_act_of_pixel_agent_with_a_state_is_refused() -> None:
    agent = TDMPC2(Config(task="cup-catch", obs="rgb", **SMALL))
    with pytest.raises(ValueError, match=r"shape \[8\]: pass \[9, 64, 64\], or \[E, 9, 64, 64\]"):
        agent.act(torch.zeros(8, dtype=torch.uint8), t0=True)


def test_act_of_pixel_agent_with_floats_is_refused() -> None:
    agent = TDMPC2(Config(task="cup-catch", obs="rgb", **SMALL))
    with pytest.raises(ValueError, match=r"Images of type torch\.float32: pass uint8, 0 to 255"):
        agent.act(torch.zeros(9, 64, 64), t0=True)
