"""Acting and updating with what is not finite, or of a wrong shape or type, is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.loading import load_agent
from tdmpc2.play.actors import agent_actor
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.rollout import Job, play
from tdmpc2.player import NotFinite
from tests.helpers.agents import random_batch
from tests.helpers.faulty_envs import PREFIX
from tests.helpers.playing import SIZES
from tests.helpers.reference import shared_file

SOUND = parse_cfg({**SIZES, "task": f"{PREFIX}Sound-v0", "eval_episodes": 1})
WAYS = [{"mpc": True, "compile": "false"}, {"mpc": True, "compile": "auto"}, {"mpc": False}]


def enlarged(cfg: Config, part: str, factor: float = 3e38) -> TDMPC2:
    """Make an agent whose weights of one network are finite, but overflow when they are multiplied."""
    agent = TDMPC2(cfg)
    for parameter in agent.model.get_submodule(part).parameters():
        parameter.data.fill_(factor)
    agent.planner.speed_up_with_use(cfg.compile, quiet=True)
    return agent


# -- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_act_on_observation_that_is_not_finite_names_the_environment(
    tiny_cfg: Config, way: dict[str, Any], value: float
) -> None:
    """Such observations used to give the same random action silently; 1e300 is infinite in float32."""
    agent = TDMPC2(tiny_cfg.replace(**way))
    obs = np.zeros((3, 24))
    obs[1, 7] = value
    for one in (obs, torch.from_numpy(obs)):
        with pytest.raises(
            NotFinite, match=r"^Environment 1 \(walker-walk\): the observation has values that"
        ) as error:
            agent.act(one, t0=True, task=[0, 1, 2])  # type: ignore[type-var]
        assert error.value.env == 1


@pytest.mark.parametrize(
    ("way", "part"),
    [
        (way, part)
        for way in WAYS
        for part in ("_encoder", "_dynamics", "_reward", "_pi", "_Qs")
        if way["mpc"] or part in ("_encoder", "_pi")  # the policy alone uses no others
    ],
)
def test_act_with_weights_that_overflow_is_refused(tiny_cfg: Config, way: dict[str, Any], part: str) -> None:
    """Weights of 3e38 are finite, but their plans used to be noise, and such agents even got scores."""
    agent = enlarged(tiny_cfg.replace(**way), part)
    obs = np.linspace(-1, 1, 24, dtype=np.float32)
    with pytest.raises(NotFinite, match=r"Environment 0 \(walker-run\): .*not finite|no value .* is finite"):
        agent.act(obs, t0=True, task="walker-run")


def test_act_with_some_finite_values_acts(tiny_cfg: Config) -> None:
    """Like the references, the planner uses the sequences that have a finite value."""
    agent = TDMPC2(tiny_cfg)
    agent.model._reward[-1].weight.data.normal_(0, 1e20)
    action = agent.act(np.full(24, 0.1, np.float32), t0=True, task=0)
    assert np.isfinite(action).all()


@pytest.mark.parametrize("way", WAYS[:2])
def test_act_that_fails_leaves_the_plans_as_they_were(tiny_cfg: Config, way: dict[str, Any]) -> None:
    """A plan of NaN used to start the next search and to be the basis of expected_return()."""
    agent = TDMPC2(tiny_cfg.replace(**way))
    agent.planner.speed_up_with_use(agent.cfg.compile, quiet=True)
    obs, player = np.full(24, 0.1, np.float32), agent.player()
    player.act(obs, t0=True, task=0)
    before, expected = player.state(), player.expected_return(obs, task=0)
    bias = agent.model._reward[-1].bias
    kept = bias.detach().clone()
    bias.data.fill_(np.nan)
    with pytest.raises(NotFinite, match="no value of its plan is finite"):
        player.act(obs, t0=True, task=1)
    assert torch.equal(player.state()["plan_mean"], before["plan_mean"])
    assert torch.equal(player.state()["ids"], before["ids"])
    assert np.array_equal(player.expected_return(obs, task=0), expected)
    bias.data.copy_(kept)
    assert np.isfinite(player.act(obs, task=0)).all()  # the episode goes on


def test_act_that_fails_first_begins_no_plan(tiny_cfg: Config) -> None:
    player = enlarged(tiny_cfg, "_reward").player()
    with pytest.raises(NotFinite):
        player.act(np.full((2, 24), 0.1, np.float32), t0=True, task=0)
    assert set(player.state()) == {"generator"}


def test_act_of_new_agent_acts(tiny_cfg: Config) -> None:
    """All values of a new agent are zero, like values that were replaced for not being finite, and it still acts."""
    agent = TDMPC2(tiny_cfg)
    with torch.no_grad():
        agent.model._Qs.params[9].zero_()
    assert np.isfinite(agent.act(np.zeros(24, np.float32), t0=True, task=0)).all()


def test_evaluation_of_weights_that_overflow_has_no_score() -> None:
    cfg = SOUND.replace(eval_episodes=2)
    with pytest.raises(ValueError, match=rf"Sound-v0 \(seed {cfg.eval_seed}, step 1\): no value of its plan is finite"):
        evaluate(enlarged(cfg, "_reward"), quiet=True)


def test_padded_environments_name_the_episode() -> None:
    """A compiled planner gets repeated environments as padding, which the message must not name."""
    from tdmpc2.play.collector import _padded

    actor = _padded(agent_actor(enlarged(SOUND, "_encoder"), noise=False), 4)
    with pytest.raises(ValueError, match=r"Sound-v0 \(seed 5, step 1\)"):
        play(SOUND, actor, [Job(0, 5)])


def test_published_student_refuses_nan_in_every_precision() -> None:
    path = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    for precision in ("auto", "int8"):
        agent = load_agent(path, device="cpu", precision=precision, num_samples=32, num_elites=8, quiet=True)
        with pytest.raises(NotFinite, match="walker-walk"):
            agent.act(np.full(24, np.nan, np.float32), t0=True, task="walker-walk")
        assert np.isfinite(agent.act(np.zeros(24, np.float32), t0=True, task="walker-walk")).all()


# -- shapes and types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ([0.0] * 24, r"The observation is a list: pass an array or tensor \[24\] or \[E, 24\], as in np.asarray"),
        (None, "The observation is a NoneType"),
        (np.zeros((2, 2, 24)), r"Observations of shape \[2, 2, 24\]: pass \[24\], or \[E, 24\]"),
        (np.zeros(()), r"Observations of shape \[\]"),
        (np.zeros((0, 24)), r"Observations of shape \[0, 24\]: pass those of one environment at least"),
        (torch.zeros(0, 24), r"Observations of shape \[0, 24\]: pass those of one environment at least"),
        (np.zeros(1), "Observation of size 1, but the model takes 24"),
        (np.array(["a"] * 24), "Observations of type <U1: pass real numbers"),
        (np.zeros(24, complex), "Observations of type complex128"),
        (torch.zeros(24, dtype=torch.complex64), "Observations of type torch.complex64"),
        (np.array([None] * 24), "Observations of type object"),
    ],
)
def test_act_with_odd_observation_says_what_to_pass(tiny_cfg: Config, obs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TDMPC2(tiny_cfg).act(obs, t0=True, task=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t0": "x"}, "t0='x': pass True where an episode starts"),
        ({"t0": None}, "t0=None: pass True"),
        ({"t0": np.nan}, "t0=nan: pass True"),
        ({"t0": np.ones(3, bool)}, "3 values of t0 for 2 environments: pass one, or one for each"),
        ({"t0": np.ones((2, 2), bool)}, "4 values of t0 for 2 environments"),
        ({"task": 1.5}, "task=1.5 is not one of this agent's 30 tasks"),
        ({"task": np.float32(1)}, r"task=.*1.0.* is not one of"),
        ({"task": torch.tensor([0.0, 1.0])}, r"task=.*0.* is not one of"),
        ({"task": -1}, "task=-1 is not one of"),
        ({"task": True}, "task=True is not one of"),
        ({"task": [0, 1, 2]}, "3 tasks for 2 environments"),
    ],
)
def test_act_with_odd_arguments_says_what_to_pass(tiny_cfg: Config, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TDMPC2(tiny_cfg).act(np.zeros((2, 24), np.float32), **{"t0": True, "task": 0, **arguments})


def test_act_takes_any_real_numbers_and_strides(tiny_cfg: Config) -> None:
    values = np.arange(24, dtype=np.float32)
    expected = TDMPC2(tiny_cfg).act(values, t0=True, task=0)
    for obs in (values.astype(">f4"), values.astype(np.int16), values[::-1].copy()[::-1], np.repeat(values, 2)[::2]):
        np.testing.assert_array_equal(TDMPC2(tiny_cfg).act(obs, t0=True, task=0), expected)
    tensor = torch.from_numpy(values).requires_grad_()
    np.testing.assert_array_equal(TDMPC2(tiny_cfg).act(tensor, t0=True, task=0), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": lambda x: x.squeeze(-1)}, r"'reward' has shape \[3, 8\], expected \[H, B, 1\] with H=3, O=24, A=6"),
        ({"reward": lambda x: x.expand(-1, -1, 2)}, r"'reward' has shape \[3, 8, 2\]"),
        ({"reward": lambda x: x[:1]}, r"'reward' has shape \[1, 8, 1\]"),
        ({"action": lambda x: x[:, :1]}, r"'action' has shape \[3, 1, 6\], expected \[H, B, A\]"),
        ({"action": lambda x: x[..., :1]}, r"'action' has shape \[3, 8, 1\]"),
        ({"obs": lambda x: x[:-1]}, r"'obs' has shape \[3, 8, 24\], expected \[H\+1, B, O\]"),
        ({"obs": lambda x: x[0]}, r"'obs' has shape \[8, 24\]"),
        ({"obs": lambda x: x[:, :0]}, r"'obs' has shape \[4, 0, 24\]"),
        ({"obs": lambda x: x.double()}, r"'obs' is torch.float64, expected torch.float32"),
        ({"action": lambda x: x.long()}, r"'action' is torch.int64, expected torch.float32"),
        ({"task": lambda x: x.float()}, r"'task' is \[8\] of torch.float32, expected int64 \[8\]"),
        ({"task": lambda x: x[:1]}, r"'task' is \[1\] of torch.int64, expected int64 \[8\]"),
        ({"task": lambda x: x + 30}, "task ids that the model has not: it knows 0 to 29"),
        ({"task": lambda x: x - 30}, "task ids that the model has not"),
        ({"task": lambda x: x.numpy()}, "'task' is a ndarray: pass tensors"),
    ],
)
def test_update_with_odd_batch_names_the_field(tiny_cfg: Config, changes: dict[str, Any], message: str) -> None:
    """A reward without its last axis would broadcast to [H, B, B] in the loss."""
    batch = random_batch(tiny_cfg, 1)
    agent = TDMPC2(tiny_cfg)
    before = {name: value.clone() for name, value in agent.model.state_dict().items()}
    odd = batch._asdict() | {name: change(getattr(batch, name)) for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        agent.update(odd)
    assert all(torch.equal(value, before[name]) for name, value in agent.model.state_dict().items())


@pytest.mark.parametrize("task", ["walker-walk", 30, -1, 1.0, True, [0, 30]])
def test_model_names_a_task_that_it_has_not(tiny_cfg: Config, task: Any) -> None:
    model = TDMPC2(tiny_cfg).model
    obs = torch.zeros(len(task) if isinstance(task, list) else 1, tiny_cfg.obs_dim)
    with pytest.raises(ValueError, match="task ids that the model has not: it knows 0 to 29"):
        model.encode(obs, task)


@pytest.mark.parametrize("eval_mode", [None, "x", 2, [True, False], torch.ones(3)])
def test_act_with_odd_eval_mode_is_refused(tiny_cfg: Config, eval_mode: object) -> None:
    agent = TDMPC2(tiny_cfg)
    with pytest.raises(ValueError, match=r"eval_mode=.* must be True or False"):
        agent.act(np.zeros(24, np.float32), t0=True, task=0, eval_mode=eval_mode)  # type: ignore[arg-type]


def test_teacher_that_is_a_path_is_refused(tiny_cfg: Config) -> None:
    for teacher in ("teacher.pt", {"walker-walk": "teacher.pt"}):
        with pytest.raises(ValueError, match=r"teacher='teacher\.pt' is no agent: pass load_agent\(PATH\)"):
            TDMPC2(tiny_cfg, teacher)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", ["1", 1.5])
def test_player_with_no_whole_number_as_seed_is_refused(tiny_cfg: Config, seed: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        TDMPC2(tiny_cfg).player(seed=seed)


def test_plan_from_before_the_policy_acted_is_not_gone_on_from(tiny_cfg: Config) -> None:
    """A run may be stopped with plans, continued without, and once more with them."""
    agent = TDMPC2(tiny_cfg)
    obs = np.zeros((1, tiny_cfg.obs_dim), np.float32)
    planning, policy, later = agent.player(mpc=True), agent.player(mpc=False), agent.player(mpc=True)
    planning.act(obs, True, task=0)
    policy.load_state(planning.state())
    policy.act(obs, False, task=0)
    later.load_state(policy.state())
    assert later.plan_mean is None
