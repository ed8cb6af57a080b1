"""Presets of the planner: what they stand for, and that typed keys win wherever they are typed."""

from __future__ import annotations

from typing import Any

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import KEYS, PLANNER_KEYS, PRESETS, Config, from_record, parse_cfg
from tdmpc2.config.presets import with_preset
from tdmpc2.loading import load_agent

FAST = PRESETS["fast"]


def planning(cfg: Config) -> dict[str, Any]:
    return {key: getattr(cfg, key) for key in FAST}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_set_of_planning_keys_with_values_they_may_have(name: str) -> None:
    assert PRESETS[name].keys() <= {"mpc", *PLANNER_KEYS}
    cfg = parse_cfg({"planner": name})
    assert {key: getattr(cfg, key) for key in PRESETS[name]} == PRESETS[name]
    assert cfg.planner is None  # the preset is replaced by its keys, which are recorded
    assert from_record(cfg.to_dict()) == cfg


def test_full_is_the_default() -> None:
    assert {key: KEYS[key].default for key in PRESETS["full"]} == PRESETS["full"]


def test_typed_keys_win_over_a_preset() -> None:
    cfg = parse_cfg({"planner": "fast", "num_samples": 64})
    assert planning(cfg) == {**FAST, "num_samples": 64}
    for cfg in (parse_cfg({"planner": "fast", "num_samples": 512}), Config(planner="fast", num_samples=512)):
        assert planning(cfg) == {**FAST, "num_samples": 512}  # typed, though it is the key's default
    assert planning(parse_cfg({**Config().to_dict(), "planner": "fast", "iterations": 4})) == {**FAST, "iterations": 4}
    assert with_preset({"planner": "fast", "num_samples": 512}) == {**FAST, "num_samples": 512}
    assert with_preset({"planner": "null", "lr": 1}) == {"lr": 1}


def test_preset_replaces_what_a_file_says(tiny_cfg: Config) -> None:
    """A model trained with a small budget can be asked for the full one; its elites grow in proportion."""
    cfg = tiny_cfg.replace(planner="full")
    assert (cfg.num_samples, cfg.iterations, cfg.num_elites, cfg.num_pi_trajs) == (512, 6, 128, 128)
    assert tiny_cfg.replace(planner="fast", num_samples=16).num_samples == 16
    assert tiny_cfg.replace(planner="policy").mpc is False
    with pytest.raises(ValueError, match=r"planner=quick is not one of full, fast, policy"):
        tiny_cfg.replace(planner="quick")
    with pytest.raises(ValueError, match=r"planner=\['fast'\] must be one of full, fast, policy"):
        tiny_cfg.replace(planner=["fast"])
    with pytest.raises(ValueError, match=r"planner=fsat is not one of full, fast, policy\. Did you mean 'fast'"):
        parse_cfg({"planner": "fsat"})


def test_agent_is_loaded_and_players_are_made_with_a_preset(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    source = {"model": agent.model.state_dict(), "config": agent.cfg.to_dict()}
    assert planning(load_agent(source, device="cpu", quiet=True, planner="fast").cfg) == FAST
    assert not load_agent(source, device="cpu", quiet=True, planner="policy").cfg.mpc
    assert load_agent(source, device="cpu", quiet=True, planner="policy", mpc=True).cfg.mpc
    assert not agent.player(planner="policy").mpc
    assert agent.player(planner="fast").mpc


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["planner=fast"], FAST),
        (["planner=fast", "num_samples=512"], {**FAST, "num_samples": 512}),
        (["num_samples=512", "--planner", "policy"], {"mpc": False, "num_samples": 512}),
        (["planner=policy", "mpc=true"], {"mpc": True}),
        (["planner=null"], {}),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_command_line_takes_a_preset_and_typed_keys_win(
    command: str, words: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typed value wins even if it is the key's default, which Hydra's composed configuration does not show."""
    seen: list[Any] = []
    if command == "evaluate":
        from tdmpc2.commands import evaluate as module

        monkeypatch.setattr("tdmpc2.play.scoring.score_files", lambda paths, keys: seen.append(keys))
        module.main(["checkpoint=model.pt", *words])
        typed = {key: value for key, value in seen[0].items() if key in FAST}
        assert typed == expected
        return
    from tdmpc2.commands import train as module  # type: ignore[no-redef]

    monkeypatch.setattr("tdmpc2.training.offline.train", lambda cfg, teacher: seen.append(cfg) or exit_quietly())
    with pytest.raises(SystemExit):
        module.main(["teacher_config=null", *words])
    defaults = {key: KEYS[key].default for key in FAST}
    assert planning(seen[0]) == {**defaults, **expected}


def exit_quietly() -> None:
    raise SystemExit(0)
