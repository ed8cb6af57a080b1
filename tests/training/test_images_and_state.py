"""Images and numbers observed together: the model, the buffer, files, acting, and learning from both."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tdmpc2
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file, precision_of
from tdmpc2.checkpoints.sizes import infer_config, infer_sizes
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.ring import ReplayRing
from tdmpc2.nn.layers import simnorm
from tdmpc2.nn.pixels import shift_images, split_observation
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.play.collector import collect
from tdmpc2.play.evaluation import evaluate
from tdmpc2.quantization.calibration import played_inputs
from tdmpc2.quantization.copies import payload
from tdmpc2.quantization.recipes import RECIPES
from tdmpc2.training.online import train_online
from tdmpc2.training.preflight import random_batch
from tdmpc2.training.ring import row_format_of
from tests.helpers.online import SMALL, config
from tests.helpers.reference import REPO
from tests.helpers.toy_envs import SEES, STANDS, TARGET, TARGET_STEPS

BOTH = {**SMALL, "task": SEES, "obs": "rgb+state"}


@pytest.fixture(scope="module")
def cfg() -> Config:
    return parse_cfg(BOTH)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_online(config(tmp_path_factory.mktemp("both"), SEES, obs="rgb+state"), None)


def observations(cfg: Config, *rows: int) -> torch.Tensor:
    numbers = torch.randn(*rows, cfg.obs_dim).view(torch.uint8)
    images = torch.randint(256, (*rows, *cfg.image_shape), dtype=torch.uint8)
    return torch.cat([numbers, images.flatten(-3)], -1)


def test_one_observation_whose_bytes_are_no_multiple_of_four_is_taken_apart() -> None:
    """Such a row used to be read as float32 at an address that is no multiple of four."""
    obs = torch.cat([torch.tensor([1.5, -2.0]).view(torch.uint8), torch.ones(3 * 45 * 45, dtype=torch.uint8)])[None]
    assert obs.shape[1] % 4
    state, images = split_observation(obs, 2, (3, 45, 45))
    assert state.tolist() == [[1.5, -2.0]]
    assert images.shape == (1, 3, 45, 45)


def test_encode_adds_both_encoders_before_one_simnorm(cfg: Config) -> None:
    """Both encoders end in a LayerNorm, so that neither outweighs the other at the beginning."""
    model = WorldModel(cfg)
    obs = observations(cfg, 5)
    state, images = split_observation(obs, cfg.obs_dim, cfg.image_shape)
    parts = model._encoder["state"](state), model._encoder["rgb"](images)
    torch.testing.assert_close(model.encode(obs), simnorm(parts[0] + parts[1], cfg.simnorm_dim))
    for part in parts:
        assert (part.std(-1, correction=0) > 0.5).all()
        assert (part.std(-1, correction=0) < 1.01).all()


def test_encode_shifts_the_images_alone(cfg: Config) -> None:
    model = WorldModel(cfg)
    obs, shift = observations(cfg, 4), torch.tensor([[0, 6], [3, 3], [5, 1], [6, 6]])
    state, images = split_observation(obs, cfg.obs_dim, cfg.image_shape)
    moved = torch.cat([state.view(torch.uint8), shift_images(images, shift).flatten(1)], 1)
    torch.testing.assert_close(model.encode(obs, shift=shift), model.encode(moved))


def test_update_trains_both_encoders(cfg: Config) -> None:
    agent = TDMPC2(cfg)
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    for seed in range(2):  # the first update starts from a last layer of zeros
        agent.update(random_batch(cfg.replace(seed=seed), agent.device))
    moved = [name for name, tensor in agent.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {"_encoder.state.0.bias", "_encoder.rgb.2.weight", "_encoder.rgb.10.ln.weight"} <= set(moved)


def test_ring_stores_each_frame_once_and_gives_back_what_was_seen(cfg: Config) -> None:
    row_format = row_format_of(cfg)
    assert row_format.words * 4 == 4 * 40 * 44 + 4 * (cfg.obs_dim + cfg.action_dim + 1)
    ring, kept = ReplayRing(row_format, 30, 2), []
    frames = torch.randint(256, (20, 4, 40, 44), dtype=torch.uint8)
    for first in (0, 8):
        steps = torch.arange(8)
        images = torch.cat([frames[first + (steps - age).clamp(min=0)] for age in (2, 1, 0)], 1)
        numbers = torch.randn(8, cfg.obs_dim).view(torch.uint8)
        obs = torch.cat([numbers, images.flatten(1)], 1)
        ring.add(obs.numpy(), np.zeros((8, 2)), np.arange(8.0))
        kept.append(obs)
    for first, obs in zip(ring.first_rows.tolist(), kept, strict=True):
        for start in range(6):
            batch = ring.gather((first + start + torch.arange(3))[:, None])
            assert torch.equal(batch.obs[:, 0], obs[start : start + 3])


def test_file_keeps_what_is_observed_and_acts_alike(run: Path, cfg: Config) -> None:
    agent = tdmpc2.load_agent(run, device="cpu", compile=False, quiet=True)
    assert (agent.cfg.obs, agent.cfg.obs_shape) == ("rgb+state", cfg.obs_shape)
    assert agent.cfg.task_specs == cfg.task_specs
    obs = observations(cfg, 2)
    expected = agent.model.policy_mean(agent.model.encode(obs)).detach()
    torch.testing.assert_close(agent.player(mpc=False).act(obs, t0=True), expected)
    assert agent.act(obs[0].numpy(), t0=True).shape == (2,)


def test_sizes_of_the_file_tell_both_encoders(run: Path, cfg: Config) -> None:
    state = load_file(run).model
    found = infer_sizes(state)
    assert (found["obs_dim"], found["num_channels"], found["enc_dim"]) == (5, 32, 16)
    inferred = infer_config(state, SEES)
    assert (inferred.obs, inferred.enc_dim) == ("rgb+state", 16)
    with pytest.raises(ValueError, match=r"It was trained with obs=rgb\+state: set that"):
        TDMPC2(parse_cfg({**SMALL, "task": STANDS, "obs": "rgb"})).load(state)


def test_act_of_numbers_that_are_not_finite_is_refused(run: Path, cfg: Config) -> None:
    agent = tdmpc2.load_agent(run, device="cpu", compile=False, quiet=True)
    obs = observations(cfg, 1)
    obs[0, 4:8] = torch.tensor([float("nan")]).view(torch.uint8)
    with pytest.raises(ValueError, match="the observation has values that are not finite"):
        agent.act(obs, t0=True)


def test_evaluate_plays_the_file(run: Path) -> None:
    agent = tdmpc2.load_agent(run, device="cpu", compile=False, quiet=True)
    result = evaluate(agent, agent.cfg.replace(eval_episodes=2), quiet=True)
    assert len(result.tasks[0].returns) == 2
    assert np.isfinite(result.tasks[0].returns).all()


def test_collect_stores_the_states_that_are_drawn_beside(tmp_path: Path) -> None:
    """States are stored if they are all that there is to know; an environment that observes images is refused."""
    cfg = parse_cfg({**BOTH, "task": STANDS, "episodes_per_task": 2})
    agent = TDMPC2(cfg)
    (path,) = collect(cfg, agent, tmp_path / "data")
    stored = torch.load(path, weights_only=False)
    assert stored["obs"].shape[-1] == 4
    assert stored["obs"][0, :, 1].tolist() == [float(t) for t in range(8)]
    with pytest.raises(ValueError, match=r"obs=rgb\+state: stored episodes hold states"):
        collect(parse_cfg({**BOTH, "episodes_per_task": 2}), None, tmp_path / "more")


@pytest.mark.slow
def test_learning_from_images_and_numbers_needs_both(tmp_path: Path) -> None:
    """The vector tells where the point is, and the image shows its target, 0.5 or -0.5."""
    cfg = parse_cfg({
        "task": TARGET, "obs": "rgb+state", "model_size": None, "enc_dim": 32, "mlp_dim": 32, "latent_dim": 32,
        "num_channels": 4, "num_q": 2, "num_samples": 32, "num_elites": 8, "num_pi_trajs": 4, "iterations": 2,
        "batch_size": 16, "lr": 2e-3, "seed_steps": 300, "steps": 1100, "eval_freq": 0, "compile": "false",
        "device": "cpu", "num_threads": 1, "work_dir": str(tmp_path / "run"),
    })  # fmt: skip
    train_online(cfg, None)
    with (cfg.run_dir / "episodes.csv").open(newline="") as file:
        returns = [float(row["return"]) for row in csv.DictReader(file)]
    random, last = np.mean(returns[:15]), np.mean(returns[-10:])
    print(f"random {random:.1f}, last ten {last:.1f} of at most {TARGET_STEPS}")
    assert last > random + 0.5 * (TARGET_STEPS - random)


def test_quantised_file_keeps_the_encoder_of_images_and_acts(run: Path, tmp_path: Path) -> None:
    """Inputs are played, since stored episodes have no images; the image encoder is never int8."""
    agent = tdmpc2.load_agent(run, device="cpu", compile=False, quiet=True)
    inputs = played_inputs(agent.model, 32)
    assert inputs.obs.shape == (32, *agent.cfg.obs_shape)
    file = load_file(run)
    expected = agent.model.policy_mean(agent.model.encode(inputs.obs)).detach()
    for name, tolerance in (("fp16", 0.01), ("int8", 0.1)):
        content = payload(file, RECIPES[name])
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        assert precision_of(load_file(path).model) == name
        other = tdmpc2.load_agent(path, device="cpu", compile=False, quiet=True)
        found = other.model.policy_mean(other.model.encode(inputs.obs))
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_environment_of_the_page_is_learned_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPO / "docs" / "own_environment.md").read_text()
    snippet = next(text for text in re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M) if "my_robot.py" in text)
    (tmp_path / "my_robot.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    assert "task=my_robot:Reach-v0 obs=rgb+state model_size=1 steps=20000" in page
    cfg = config(tmp_path, "my_robot:Reach-v0", obs="rgb+state", seed_steps=50, steps=55, batch_size=2, horizon=1)
    train_online(cfg, None)
    assert len((cfg.run_dir / "episodes.csv").read_text().splitlines()) == 2
