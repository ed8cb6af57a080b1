"""Configurations that are read: interpolation, messages of one line, and names that others use."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from tdmpc2.config import check_keys, key_names, parse_cfg
from tdmpc2.config.aliases import ALIASES


def test_parse_cfg_interpolation_is_resolved() -> None:
    assert parse_cfg(OmegaConf.create({"steps": 7, "save_freq": "${steps}"})).save_freq == 7


def test_parse_cfg_leaves_its_argument_unchanged() -> None:
    given = {"steps": "1e3", "task": "Pendulum-v1"}
    parse_cfg(given)
    assert given == {"steps": "1e3", "task": "Pendulum-v1"}


def test_config_error_is_one_line() -> None:
    for changes in ({"stepz": 1}, {"task": "Nope-v0"}, {"tasks": ["x"]}, {"lr": "x"}, {"num_samples": 1}):
        with pytest.raises(ValueError, match=re.compile(r"\A.+\Z")):
            parse_cfg(changes)


@pytest.mark.parametrize(
    ("typed", "key"),
    [("learning_rate", "lr"), ("num-steps", "steps"), ("gamma", "discount_max"), ("Batchsize", "batch_size")],
)
def test_key_by_the_name_that_others_use_is_answered_with_ours(typed: str, key: str) -> None:
    """`learning_rate` used to be refused without a suggestion, since no key is spelt like it."""
    with pytest.raises(ValueError, match=f"Unknown key '{typed}' in a file. Did you mean '{key}'"):
        check_keys([typed], "a file")


def test_names_that_others_use_are_not_keys_and_lead_to_one() -> None:
    names = [alias for aliases in ALIASES.values() for alias in aliases]
    assert len(names) == len(set(names))
    assert not set(names) & set(key_names())
    assert {key.rpartition(".")[2] for key in ALIASES} <= set(key_names())
