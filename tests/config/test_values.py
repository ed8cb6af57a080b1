"""Values: suggestions for enumerated ones, words for nothing, and entries of ``mix`` and ``distillation_targets``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tdmpc2.config import Config, MixEntry, has_teacher, parse_cfg


@pytest.mark.parametrize(
    ("name", "value", "suggested"),
    [
        ("policy_loss", "tdmpc", "tdmpc2"), ("precision", "pf16", "fp16"), ("data_device", "dsik", "disk"),
        ("distillation_schedule", "cos", None), ("mode", "ofline", "offline"), ("task_balance", "task", "tasks"),
    ],
)  # fmt: skip
def test_enumerated_value_suggests_the_nearest(name: str, value: str, suggested: str | None) -> None:
    """A misspelt value used to be refused without a suggestion, unlike a misspelt key or task."""
    with pytest.raises(ValueError, match=f"^{name}={value} is not one of ") as error:
        Config(**{name: value})
    assert str(error.value).endswith(f" Did you mean '{suggested}'?") == (suggested is not None)


@pytest.mark.parametrize("word", [None, "none", "None", "null", "~"])
def test_words_for_nothing(word: str | None) -> None:
    cfg = Config(checkpoint=word, model_size=word, tasks=word, mix=word, wandb_project=word)  # type: ignore[arg-type]
    assert [cfg.checkpoint, cfg.model_size, cfg.tasks, cfg.mix, cfg.wandb_project] == [None] * 5
    assert not has_teacher(word)


def test_nothing_is_no_value_of_a_key_that_needs_one() -> None:
    with pytest.raises(ValueError, match=r"steps='none' must be a whole number$"):
        Config(steps="none")  # type: ignore[arg-type]


def test_teacher_is_a_set_of_keys() -> None:
    """teacher_config=none used to end in a message about OmegaConf."""
    assert has_teacher({"checkpoint": "t.pt"})
    assert has_teacher(OmegaConf.create({"checkpoint": None}))
    with pytest.raises(ValueError, match=r"teacher_config=t\.pt is neither null .* teacher_config\.checkpoint=t\.pt$"):
        has_teacher("t.pt")


def test_choices_that_yaml_reads_as_bool() -> None:
    assert Config(compile=True, distillation_cache=False).compile == "true"  # type: ignore[arg-type]
    assert Config(distillation_cache=False).distillation_cache == "off"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resume=false is not one of"):
        Config(resume=False)  # type: ignore[arg-type]


def test_unknown_distillation_target_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"^distillation_targets: 'rewards' is not one of .* Did you mean 'reward'\?$"):
        Config(distillation_targets=("rewards",))
    with pytest.raises(ValueError, match=r"^distillation_targets: 'rewards' in 'rewards 0\.5' is not one of "):
        Config(distillation_targets=("rewards 0.5",))


# Mixtures

ENTRIES = (
    MixEntry(0.2, "random"),
    MixEntry(0.3, "policy", "logs/early.pt", 0.3),
    MixEntry(0.5, "planner", "late.pt"),
)
STRUCTURED = [
    {"share": 0.2, "kind": "random"},
    {"share": "0.3", "kind": "policy", "checkpoint": "logs/early.pt", "noise": 0.3},
    {"share": 0.5, "kind": "planner", "checkpoint": "late.pt", "noise": None},
]
TEXT = ["0.2 random", " 0.3 policy  logs/early.pt noise 0.3", "0.5 planner late.pt"]


@pytest.mark.parametrize("value", [STRUCTURED, TEXT, ",".join(TEXT), ENTRIES, [STRUCTURED[0], TEXT[1], ENTRIES[2]]])
def test_mix_has_two_forms_of_one_meaning(value: Any) -> None:
    assert parse_cfg({"mix": value}).mix == ENTRIES


def test_mix_as_it_is_typed() -> None:
    typed = (
        "mix=[{share: 0.2, kind: random}, {share: 0.3, kind: policy, checkpoint: logs/early.pt, noise: 0.3},"
        " 0.5 planner late.pt]"
    )
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert parse_cfg(OmegaConf.create({"mix": override.value()})).mix == ENTRIES


def test_mix_survives_a_round_trip() -> None:
    cfg = Config(mix=TEXT)  # type: ignore[arg-type]
    plain = cfg.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert Config(**plain) == cfg
    assert hash(cfg) == hash(Config(**plain))


@pytest.mark.parametrize("form", ["text", "structured"])
def test_home_directory_in_mix(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    entry: Any = "1 policy ~/x.pt" if form == "text" else {"share": 1, "kind": "policy", "checkpoint": "~/x.pt"}
    (parsed,) = Config(mix=[entry]).mix or ()  # type: ignore[arg-type]
    assert parsed.checkpoint == "/home/someone/x.pt"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("0.5 policy", "'0.5 policy' names no checkpoint"),
        ("random", "'random' is not of the form"),
        ("1 polic x.pt", "'polic' is not one of random, policy, planner. Did you mean 'policy'?"),
        ({"share": 1, "kind": "planer"}, "'planer' is not one of random, policy, planner. Did you mean 'planner'?"),
        ({"share": 1, "kind": "policy"}, "'{share: 1, kind: policy}' names no checkpoint"),
        ({"kind": "random"}, "'{kind: random}' has no share"),
        ({"share": 1}, "'{share: 1}' has no kind"),
        ({"share": 0, "kind": "random"}, "the share in '{share: 0, kind: random}' must be a positive number"),
        ({"share": True, "kind": "random"}, "must be a positive number"),
        ({"share": 1, "kind": "random", "checkpoint": "x.pt"}, "neither a checkpoint nor noise"),
        ({"share": 1, "kind": "policy", "checkpoint": "x.pt", "noise": -1}, "must be a number, 0 or more"),
        ({"share": 1, "kind": "random", "chekpoint": "x.pt"}, "'chekpoint' is not one of share, kind, "),
        (5, "mix: 5 must be an entry of the form"),
    ],
)  # fmt: skip
def test_wrong_mix_is_refused_by_the_configuration(entry: Any, message: str) -> None:
    """A wrong mixture used to pass, although the configuration promises errors at construction."""
    with pytest.raises(ValueError, match=r"^mix: ") as error:
        Config(mix=["1 random", entry])  # type: ignore[arg-type]
    assert message in str(error.value)


def test_mix_without_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="mix has no entries"):
        Config(mix=())


def test_list_of_tasks_for_task_names_the_key_for_lists() -> None:
    """``task=[a]`` for ``tasks=[a]`` used to end in a traceback of evaluate.py."""
    with pytest.raises(ValueError, match=r"task=\['pendulum-spin'\] must be one value, not a list; tasks=\[...\]"):
        parse_cfg({"task": ["pendulum-spin"]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        *(({name: 1e300}, rf"{name}=1e\+300 must be at most 1e\+09: nothing computes with more")
          for name in ("bc_coef", "reward_coef", "distillation_weight", "entropy_coef")),
        ({"lr": 1e300}, r"lr=1e\+300 must be at most 1e\+30"),
        ({"vmin": -1e300}, r"vmin=-1e\+300 must be at least -1e\+30"),
        ({"distillation_targets": ["reward 1e300"]}, r"the weight 1e\+300 must be between 0 and 1e\+09"),
    ],
)  # fmt: skip
def test_number_that_no_update_survives_is_refused(keys: dict[str, Any], message: str) -> None:
    """Such a number used to make the first update infinite, and the message blamed the learning rate."""
    with pytest.raises(ValueError, match=message):
        Config(**keys)
