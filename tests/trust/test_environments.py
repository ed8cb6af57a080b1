"""Faults of environments are named with task, seed and step: invalid observations, rewards, frames and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs import make_env, task_spec
from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.play.actors import random_actor
from tdmpc2.play.collector import collect
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.results import table_rows
from tdmpc2.play.rollout import Job, play
from tests.helpers.faulty_envs import AT, PREFIX, FaultyEnv
from tests.helpers.playing import SIZES

ZERO = np.zeros(2, np.float32)
FAULTS = [
    ("NanObs", "entry 2 of the observation is nan"),
    ("InfObs", "entry 1 of the observation is inf"),
    ("HugeObs", "entry 3 of the observation is inf"),
    ("NanReward", "the reward is nan"),
    ("HugeReward", r"the reward is 1e\+300"),
    ("Raises", r"the environment raised KeyError: 'joint 7' \[faulty_envs.py, line \d+\]"),
    ("ShortObs", "an observation of 3 numbers, but its observation_space declares 4"),
    ("OneObs", "an observation of 1 numbers, but its observation_space declares 4"),
    ("TextObs", "the environment raised ValueError: could not convert string to float"),
    ("NoReward", "the reward is None, not a number"),
    ("TwoRewards", r"the reward is array\(\[1., 1.\]\), not a number"),
    ("NoInfo", "info is None, not a dict"),
    ("FourValues", r"not enough values to unpack \(expected 5, got 4\)"),
]


def config(name: str, **keys: Any) -> Config:
    return parse_cfg({**SIZES, "task": f"{PREFIX}{name}-v0", **keys})


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_step_with_fault_names_task_seed_and_step(name: str, fault: str) -> None:
    """An observation of a wrong size used to broadcast into the padded one, and NaN was played on with."""
    env = make_env(f"{PREFIX}{name}-v0", seed=6)
    env.reset()
    for _ in range(AT - 1):
        env.step(ZERO)
    with pytest.raises(EnvironmentFault, match=rf"^{PREFIX}{name}-v0 \(seed 6, step {AT}\): .*{fault}"):
        env.step(ZERO)


def test_fault_in_a_later_episode_names_that_too() -> None:
    env = make_env(f"{PREFIX}Raises-v0", seed=6)
    env.reset()
    env.reset()
    env.step(ZERO), env.step(ZERO)
    with pytest.raises(EnvironmentFault, match=r"\(seed 6, episode 2, step 3\)"):
        env.step(ZERO)


@pytest.mark.parametrize(("name", "fault"), [FAULTS[0], FAULTS[3], FAULTS[5]])
def test_evaluation_with_fault_names_the_episode(name: str, fault: str) -> None:
    cfg = config(name, eval_episodes=2)
    with pytest.raises(EnvironmentFault, match=rf"{name}-v0 \(seed {cfg.eval_seed}, step {AT}\): .*{fault}"):
        evaluate(TDMPC2(cfg), quiet=True)


def test_collecting_with_fault_names_the_episode_and_what_to_do(tmp_path: Path) -> None:
    """The message used to name a chunk file that was never written and advise to download it again."""
    with pytest.raises(ValueError, match=rf"NanObs-v0 \(seed \d+, step {AT}\).*another seed than 1 plays others"):
        collect(config("NanObs", episodes_per_task=1), None, tmp_path)
    assert not list(tmp_path.glob("chunk_*"))


def test_collecting_rewards_beyond_the_bins_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards of 1e30 used to be collected silently and learned as the last bin."""
    collect(config("LargeReward", episodes_per_task=2, episodes_per_file=1), None, tmp_path / "large")
    lines = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(lines) == 1
    assert "LargeReward-v0 has rewards such as 1e+30, beyond the model's bins, -22,025 to 22,025" in lines[0]
    collect(config("Sound", episodes_per_task=1), None, tmp_path / "sound")
    assert "Warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "found"),
    [("NoFrame", "None"), ("FrameList", "a list"), ("FloatFrame", r"an array \(32, 48, 3\) of float64")],
)
def test_first_frame_that_is_no_image_names_the_environment(name: str, found: str) -> None:
    cfg = config(name)
    with pytest.raises(EnvironmentFault, match=rf"{name}-v0 \(seed 9, step 0\): render\(\) returned {found}"):
        play(cfg, random_actor(cfg, 1), [Job(0, 9)], render=[0])


class Talkative(FaultyEnv):
    """An environment whose info has entries that change in type and shape."""

    def step(self, action: Any) -> Any:
        *outcome, _ = super().step(action)
        odd = [1, 2] if self.seed == 1 else self.t
        return *outcome, {
            "contacts": np.zeros(self.t),
            "why": "x" * self.t,
            "odd": odd,
            "maybe": {} if self.t % 2 else 3,
        }


def test_info_of_any_kind_disturbs_no_episode() -> None:
    """Gymnasium stacks the infos of environments, which used to fail without naming one."""
    limits: dict[str, Any] = {"max_episode_steps": 8, "disable_env_checker": True}
    gymnasium.register("Talkative-v0", Talkative, kwargs={"change": {}}, **limits)
    try:
        cfg = parse_cfg({**SIZES, "task": "Talkative-v0"})
        first, second = play(cfg, random_actor(cfg, 1), [Job(0, 1), Job(0, 2)])
    finally:
        del gymnasium.registry["Talkative-v0"]
    assert first.episode_return == second.episode_return == 8


# -- actions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pendulum-spin", "Pendulum-v1"])
@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([np.nan]), r"\(seed 1, step 1\): the action is \[nan\]"),
        (np.array([np.inf]), r"the action is \[inf\]"),
        (np.zeros(2), r"action of shape \(2,\); this task takes \(1,\)"),
        (np.zeros(()), r"action of shape \(\); this task takes \(1,\)"),
        (np.array(["left"]), "the action is of type <U4"),
    ],
)
def test_action_that_is_none_is_refused(name: str, action: Any, message: str) -> None:
    """NaN used to end in MuJoCo's PhysicsError, and a scalar to broadcast."""
    env = make_env(name, seed=1)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box(np.array([2, 0.5]), np.array([2, 0.5]), dtype=np.float64), "there is nothing to choose"),
        (Box(-1e300, 1e300, (1,), np.float64), "bounds that float32 cannot hold"),
        (Box(-1, 1, (0,), np.float32), "there is nothing to choose"),
    ],
)
def test_action_space_without_a_range_is_refused(monkeypatch: pytest.MonkeyPatch, space: Box, message: str) -> None:
    """An action with equal bounds cannot be rescaled; it is left out if there are others."""
    kind = type("Env", (FaultyEnv,), {"action_space": space})
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Odd-v0", kind, kwargs={"change": {}}, max_episode_steps=5, disable_env_checker=True)
    with pytest.raises(ValueError, match=f"action space of 'Odd-v0' .*{message}"):
        make_env("Odd-v0")


# -- success ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "success"), [("OneElement", 1), ("IsSuccess", 1), ("EarlySuccess", 0), ("Sound", 0)])
def test_success_is_that_of_the_last_step(name: str, success: int) -> None:
    """Arrays of one element and the key ``is_success`` count; success before the last step does not."""
    cfg = config(name)
    (episode,) = play(cfg, random_actor(cfg, 1), [Job(0, 1)])
    assert episode.success == success
    assert episode.episode_return == 8


def test_own_task_that_says_so_is_scored_by_success(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("Env", (FaultyEnv,), {"metadata": {**FaultyEnv.metadata, "success_score": True}})
    change = {"at": 8, "info": {"success": True}}
    gymnasium.register("Scored-v0", kind, kwargs={"change": change}, max_episode_steps=8, disable_env_checker=True)
    try:
        assert task_spec("Scored-v0").success_score
        result = evaluate(TDMPC2(parse_cfg({**SIZES, "task": "Scored-v0", "eval_episodes": 2})), quiet=True)
    finally:
        del gymnasium.registry["Scored-v0"]
    assert (result.score_label, result.normalized_score) == ("normalized score", 100)
    assert table_rows(result)[0].success == 1


# -- making environments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "seed", "message"),
    [
        (None, None, "pass the name of a task or task set, or a configuration"),
        (5, None, "pass the name of a task"),
        ("os:x-v0", None, "'os:x-v0' is no environment that Gymnasium can make here.*Register it"),
        ("pendulum-spin", 1.5, "seed=1.5 must be an integer from 0"),
        ("Pendulum-v1", -1, "seed=-1 must be an integer from 0"),
        ("pendulum-spin", 2**32, "seed=4294967296 must be an integer from 0"),
        ("mt30", "1", "seed='1' must be an integer"),
        ("pendulum-spin", True, "seed=True must be an integer"),
    ],
)
def test_make_env_of_odd_arguments_is_refused(task: Any, seed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(task, seed)


def test_make_env_takes_seeds_of_numpy() -> None:
    first, second = make_env("pendulum-spin", np.int64(3)), make_env("pendulum-spin", 3)
    np.testing.assert_array_equal(first.reset()[0], second.reset()[0])
