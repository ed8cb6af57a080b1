"""Files never decide what code is executed or imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2 import make_env
from tdmpc2.agent import TDMPC2
from tdmpc2.commands import checkpoint as checkpoint_command
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs import task_spec
from tdmpc2.envs.vector import make_vec_env
from tdmpc2.loading import load_agent
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.rollout import check_playable
from tdmpc2.support.output import printable
from tdmpc2.tasks import TaskSpec

SMALL = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_samples": 8, "iterations": 1, "num_q": 2,
    "device": "cpu", "num_threads": 1, "eval_episodes": 1,
}  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write an importable module that registers an environment and leaves a trace when it is imported."""
    module, told = tmp_path / "canary_module.py", tmp_path / "told"
    module.write_text(
        f"import gymnasium\nopen({str(told)!r}, 'w').close()\n"
        "gymnasium.register('Canary-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv', "
        "max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield told
    sys.modules.pop("canary_module", None)
    import gymnasium

    gymnasium.registry.pop("Canary-v0", None)


def payload(name: str, **spec: Any) -> dict[str, Any]:
    """Make a checkpoint whose task has this name."""
    facts = {"obs_dim": 3, "action_dim": 1, "episode_length": 5, **spec}
    cfg = Config(task=name, task_specs=(TaskSpec(name, **facts),), horizon=1, **SMALL)
    return {"model": TDMPC2(cfg).model.state_dict(), "config": cfg.to_dict()}


def test_checkpoint_naming_a_module_does_not_import_it(canary: Path) -> None:
    """A name like 'antigravity:x-v0' in a file used to run that module when the file was evaluated."""
    agent = load_agent(payload("canary_module:Canary-v0"), device="cpu")
    for use in (evaluate, lambda agent: check_playable(agent.cfg), lambda agent: make_env(agent.cfg)):
        with pytest.raises(ValueError, match="names the module 'canary_module', which a file cannot make run"):
            use(agent)
    with pytest.raises(ValueError, match="cannot make run"):
        make_vec_env(agent.cfg.task_specs, [0], 3, 1)
    assert not canary.exists()


def test_checkpoint_that_lacks_its_tasks_does_not_import_a_module_to_measure_one(canary: Path) -> None:
    content = payload("canary_module:Canary-v0")
    del content["config"]["task_specs"]
    with pytest.raises(ValueError, match="cannot make run"):
        load_agent(content, device="cpu")
    assert not canary.exists()


def test_task_set_with_a_module_among_its_tasks_does_not_import_it(canary: Path) -> None:
    specs = [dict(vars(task_spec(name))) for name in Config().task_names]
    specs[3]["name"] = "canary_module:Canary-v0"
    cfg = Config(task_specs=specs, **{**SMALL, "task_dim": 8})
    with pytest.raises(ValueError, match="cannot make run"):
        make_env(cfg).reset(options={"task": "canary_module:Canary-v0"})
    assert not canary.exists()


def test_module_that_the_user_names_is_imported(canary: Path) -> None:
    """A user who names the task in a call allows the import of its module."""
    agent = load_agent(payload("canary_module:Canary-v0"), device="cpu", task="canary_module:Canary-v0")
    assert canary.exists()
    assert len(evaluate(agent, quiet=True).tasks) == 1


@pytest.mark.parametrize("use", [make_env, task_spec, lambda name: parse_cfg({"task": name})])
def test_module_in_a_call_is_imported(canary: Path, use: Any) -> None:
    use("canary_module:Canary-v0")
    assert canary.exists()


@pytest.mark.parametrize("name", ["os:x-v0", "a:b:c", ":x-v0", "no_such_module:x-v0", "not a module:x-v0", "..os:x-v0"])
def test_task_that_cannot_be_built_is_refused_in_one_line(name: str) -> None:
    with pytest.raises((ValueError, ModuleNotFoundError)) as refused:
        make_env(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fact", "value"), [("episode_length", 1), ("obs_dim", 30), ("action_dim", 2), ("success_score", True)]
)
def test_file_does_not_override_what_the_task_table_says(fact: str, value: Any) -> None:
    """A file used to be able to have a known task scored by success or over one step."""
    facts = {"obs_dim": 24, "action_dim": 6, "episode_length": 500, fact: value}
    with pytest.raises(ValueError, match=f"says that {fact} of 'walker-walk' is {value}, but it is"):
        load_agent(payload("walker-walk", **facts), device="cpu")


def test_printable_leaves_no_command_to_a_terminal() -> None:
    text = "task \x1b]0;owned\x07\x1b[2J\u202e\r\nerror: not ours\n  of ours\x9b1m"
    safe = printable(text)
    assert safe == "task \\x1b]0;owned\\x07\\x1b[2J\\u202e\\r\\nerror: not ours\n  of ours\\x9b1m"


def test_inspect_prints_names_of_a_file_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = payload("walker-walk", obs_dim=24, action_dim=6, episode_length=500)
    torch.save({**content, "evil\x1b[31m\nlayout (z)": 1, "note": json.dumps("x")}, tmp_path / "x.pt")
    checkpoint_command.main(["inspect", str(tmp_path / "x.pt")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out
