"""Keys whose defaults follow other keys: widths, elites and policy trajectories, mode and policy loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import WIDTHS, Config, parse_cfg
from tdmpc2.loading import load_agent
from tdmpc2.tasks import defaults_of

SMALL: dict[str, Any] = {"model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8}


def budget(cfg: Config) -> tuple[int, int, int]:
    return cfg.num_samples, cfg.num_elites, cfg.num_pi_trajs


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, (512, 64, 24)),
        ({"num_samples": 64}, (64, 8, 3)),
        ({"num_samples": "1e3"}, (1000, 125, 47)),
        ({"num_samples": 16}, (16, 2, 1)),
        ({"num_samples": 2}, (2, 2, 1)),
        ({"num_samples": 64, "num_elites": 20}, (64, 20, 3)),
        ({"num_samples": 64, "num_elites": 20, "num_pi_trajs": 7}, (64, 20, 7)),
        ({"num_elites": 20}, (512, 20, 24)),
    ],
)
def test_elites_follow_the_samples_unless_typed(typed: dict[str, Any], expected: tuple[int, int, int]) -> None:
    """num_samples=64 alone used to keep 64 elites of 64 samples, which selects nothing; 32 was refused."""
    assert budget(parse_cfg(typed)) == expected


def test_typed_elites_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples=32 must be at least num_elites=64"):
        parse_cfg({"num_samples": 32, "num_elites": 64})
    with pytest.raises(ValueError, match="num_samples=1 must be at least 2"):
        parse_cfg({"num_samples": 1})


def test_replace_keeps_the_proportion_of_the_configuration() -> None:
    cfg = Config(num_samples=64, num_elites=16, num_pi_trajs=8)
    assert budget(cfg.replace(num_samples=32)) == (32, 8, 4)
    assert budget(cfg.replace(num_samples=32, num_elites=3)) == (32, 3, 4)
    assert budget(cfg.replace(seed=2)) == (64, 16, 8)
    assert budget(cfg.replace(num_samples=64)) == (64, 16, 8)
    few = cfg.replace(num_elites=1)
    assert budget(few.replace(num_samples=64, iterations=2)) == (64, 1, 8), "as a run's planner while collecting"
    assert budget(few.replace(num_samples=32)) == (32, 1, 4)


@pytest.mark.parametrize("bad", [0, "x", None, 2.5])
def test_replace_refuses_a_bad_number_of_samples(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_samples="):
        Config().replace(num_samples=bad)


def test_elites_of_a_file_do_not_count_as_typed(tmp_path: Path) -> None:
    """A file stores resolved numbers; an evaluation with fewer samples still gets proportionally fewer elites."""
    TDMPC2(Config(**SMALL, device="cpu")).save(tmp_path / "x.pt")
    assert budget(load_agent(tmp_path / "x.pt", device="cpu").cfg) == (512, 64, 24)
    assert budget(load_agent(tmp_path / "x.pt", device="cpu", num_samples=64).cfg) == (64, 8, 3)
    assert budget(load_agent(tmp_path / "x.pt", device="cpu", num_samples=64, num_pi_trajs=9).cfg) == (64, 8, 9)


def test_width_beside_a_model_size_is_refused_unless_equal() -> None:
    """A width beside a model size used to be ignored silently."""
    with pytest.raises(ValueError, match=r"enc_dim=512 beside model_size=1, which has enc_dim=256 .* model_size=null"):
        parse_cfg({"enc_dim": 512})
    with pytest.raises(ValueError, match=r"latent_dim=768 beside model_size=19, .* latent_dim=512 for task=mt30"):
        parse_cfg({"model_size": 19, "latent_dim": 768})
    assert parse_cfg({"model_size": 5, "num_q": 5, "task_dim": 64}).mlp_dim == 512


def test_widths_without_a_model_size_are_those_of_the_smallest() -> None:
    cfg = parse_cfg({"model_size": None, "enc_dim": 32})
    assert (cfg.enc_dim, cfg.mlp_dim, cfg.latent_dim, cfg.num_q, cfg.task_dim) == (32, 384, 128, 2, 96)


def test_replace_of_model_size_or_task_changes_the_widths() -> None:
    cfg = Config().replace(model_size=5)
    assert (cfg.mlp_dim, cfg.num_q, cfg.task_dim) == (512, 5, 64)
    assert Config(model_size=19).replace(task="walker-walk").latent_dim == 768
    assert Config().replace(model_size=None, enc_dim=32).mlp_dim == 384
    small = Config(**SMALL)
    assert small.replace(task="mt80").task_dim == 8
    assert small.replace(task="walker-walk").task_dim == 0
    assert small.replace(task="walker-walk").replace(task="mt30").task_dim == 96


def test_replace_refuses_a_width_beside_the_model_size() -> None:
    with pytest.raises(ValueError, match="mlp_dim=99 beside model_size=1"):
        Config().replace(mlp_dim=99)


def test_embedding_of_a_single_task_is_said_to_be_needless(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_cfg({**SMALL, "task": "walker-walk"}, "student_config").task_dim == 0
    assert "student_config: task_dim=8 has no effect: the single task walker-walk" in caplog.text


def test_auto_is_resolved_and_stored_resolved() -> None:
    cfg = Config(policy_loss="auto", mode="auto")
    assert (cfg.policy_loss, cfg.mode) == ("opt", "offline")
    resolved = {"policy_loss": "opt", "mode": "offline", "num_elites": 64, "num_pi_trajs": 24, "enc_dim": 256}
    assert cfg.to_dict().items() >= resolved.items()
    assert Config(policy_loss="tdmpc2").policy_loss == "tdmpc2"


@pytest.mark.parametrize(("typed", "mode", "policy_loss"), [
    ({}, "offline", "opt"),
    ({"task": "walker-walk"}, "online", "tdmpc2"),
    ({"task": "walker-walk", "data_dir": "data/mt30"}, "offline", "opt"),
    ({"task": "walker-walk", "mode": "offline"}, "offline", "opt"),
    ({"mode": "online"}, "online", "tdmpc2"),
    ({"mode": "online", "policy_loss": "opt"}, "online", "opt"),
])  # fmt: skip
def test_mode_is_online_for_one_task_without_data(typed: dict[str, Any], mode: str, policy_loss: str) -> None:
    """A single task without data is learned by acting; data or a task set are learned from what is stored."""
    cfg = Config(**typed)
    assert (cfg.mode, cfg.policy_loss) == (mode, policy_loss)
    assert cfg.data_dir == "data/mt30"
    assert Config(**cfg.to_dict()) == cfg


@pytest.mark.parametrize(("typed", "seed_steps"), [
    ({"task": "walker-walk"}, 2500),
    ({"task": "mw-reach"}, 1000),
    ({"task": "walker-walk", "num_envs": 10}, 5000),
    ({"mode": "online"}, 15_000),
    ({"mode": "online", "tasks": ["walker-walk", "walker-run"]}, 2500),
    ({"task": "mt80"}, 20_000),  # offline it means nothing, and records of runs that were begun before hold it
    ({"task": "mt80", "mode": "online"}, 40_000),  # 80 environments step together: 500 turns for the longest episodes
    ({"task": "walker-walk", "seed_steps": 0}, 0),
])  # fmt: skip
def test_seed_steps_give_every_environment_an_episode(typed: dict[str, Any], seed_steps: int) -> None:
    assert Config(**typed).seed_steps == seed_steps


@pytest.mark.parametrize(("typed", "balance"), [
    ({}, "episodes"),
    ({"task": "walker-walk"}, "episodes"),
    ({"mode": "online"}, "tasks"),
    ({"mode": "online", "task_balance": "episodes"}, "episodes"),
    ({"mode": "online", "tasks": ["walker-walk"]}, "episodes"),  # a model of many tasks that is tuned to one
    ({"task_balance": "tasks"}, "tasks"),
])  # fmt: skip
def test_many_tasks_that_are_learned_online_are_drawn_equally_often(typed: dict[str, Any], balance: str) -> None:
    """Tasks that share a body are stored several times, and those with short episodes have more of them."""
    assert Config(**typed).task_balance == balance


def test_episodic_learning_sees_terminations_at_the_end_of_slices() -> None:
    """episodic=true has other defaults for rho and discount_max, but typed values stay; the reference replaced them."""
    assert (Config().rho, Config().discount_max) == (0.5, 0.995)
    assert (Config(episodic=True).rho, Config(episodic=True).discount_max) == (0.7, 0.99)
    typed = Config(episodic=True, rho=0.5, discount_max=0.995)
    assert (typed.rho, typed.discount_max) == (0.5, 0.995)


def test_defaults_of_gymnasiums_tasks_are_theirs_also_where_nothing_terminates() -> None:
    """halfcheetah never does, and TD-MPC2 learned it with these values."""
    halfcheetah = Config(task="mujoco-halfcheetah")
    assert (halfcheetah.rho, halfcheetah.discount_max, halfcheetah.discounts) == (0.7, 0.99, (0.99,))
    assert Config(task="mujoco-halfcheetah", rho=0.5).rho == 0.5
    assert defaults_of(["mujoco-halfcheetah", "walker-walk"]) == defaults_of([]) == {}


def test_cached_targets_are_refused_while_learning_online() -> None:
    with pytest.raises(ValueError, match=r"\Adistillation_cache=lazy belongs to stored episodes.*=off\Z"):
        Config(mode="online", distillation_cache="lazy")


def test_following_names_the_keys_that_are_as_they_follow() -> None:
    """Reports leave derived keys out of a run's label, because model_size already implies them."""
    every = {*WIDTHS, "num_elites", "num_pi_trajs", "policy_loss", "mode"}
    every |= {"data_dir", "rho", "discount_max", "seed_steps", "task_balance"}
    assert Config(num_samples=64, model_size=5).following() == every
    assert Config(num_elites=8, policy_loss="tdmpc2").following() == every - {"num_elites", "policy_loss"}
    assert every - Config(**SMALL).following() == {"enc_dim", "mlp_dim", "latent_dim", "task_dim"}


def test_mode_that_was_typed_does_not_follow() -> None:
    """A card names the mode wherever task and data alone would mean another one."""
    assert "mode" in Config(task="walker-walk").following()
    assert "mode" in Config(task="walker-walk", data_dir="data/mine").following()
    assert "mode" not in Config(task="walker-walk", mode="offline").following()
    online = Config(mode="online")
    assert "mode" not in online.following()
    assert "policy_loss" in online.following(), "it follows from the mode that was typed"
