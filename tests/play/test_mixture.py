"""Mixtures of behaviour policies: how they are typed, and their parts of a collection."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from tdmpc2.config import MixEntry, parse_cfg
from tdmpc2.config.mix import parse_mix
from tdmpc2.play.mixture import mixture_entries, split


def test_shares_are_scaled_to_a_sum_of_one() -> None:
    entries = ["0.5 random", "1 policy logs/a b/m.pt noise 0.3", "0.5  planner  m.pt", "2 planner m.pt noise 0"]
    sources = mixture_entries(parse_mix(entries), None, True)
    assert sources == [
        MixEntry(0.125, "random"),
        MixEntry(0.25, "policy", "logs/a b/m.pt", 0.3),
        MixEntry(0.125, "planner", "m.pt"),
        MixEntry(0.5, "planner", "m.pt", 0.0),
    ]
    assert [str(source) for source in sources][1:] == [
        "policy logs/a b/m.pt noise 0.3",
        "planner m.pt",
        "planner m.pt noise 0",
    ]


def test_mixture_as_it_is_typed() -> None:
    typed = "mix=[0.2 random, 0.3 policy models/early-1_a.pt noise 0.3, 0.5 planner logs/mt30/1/default/model.pt]"
    (override,) = OverridesParser.create().parse_overrides([typed])
    entries = parse_cfg({"mix": override.value()}).mix or ()
    assert [(entry.kind, entry.checkpoint, entry.noise) for entry in entries] == [
        ("random", None, None),
        ("policy", "models/early-1_a.pt", 0.3),
        ("planner", "logs/mt30/1/default/model.pt", None),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("random", "is not of the form"),
        ("0.5 expert x.pt", "'expert' is not one of random, policy, planner"),
        ("half random", "the share in 'half random' must be a positive number"),
        ("0 random", "must be a positive number"),
        ("-1 random", "must be a positive number"),
        ("inf random", "must be a positive number"),
        ("1 random x.pt", "neither a checkpoint nor noise"),
        ("1 random noise 0.1", "neither a checkpoint nor noise"),
        ("1 policy", "names no checkpoint"),
        ("1 planner noise 0.1", "names no checkpoint"),
        ("1 policy x.pt noise loud", "the noise in '1 policy x.pt noise loud'"),
        ("1 policy x.pt noise -0.1", "must be a number, 0 or more"),
    ],
)
def test_bad_entry_is_named(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_mix(["1 random", entry])
    assert f"'{entry}'" in str(error.value)


def test_sources_of_config_follow_mix_and_checkpoint() -> None:
    assert mixture_entries(None, None, True) == [MixEntry(1, "random")]
    assert mixture_entries(None, "x.pt", True) == [MixEntry(1, "planner", "x.pt")]
    assert mixture_entries(None, "x.pt", False) == [MixEntry(1, "policy", "x.pt")]
    with pytest.raises(ValueError, match=r"checkpoint=x\.pt beside mix"):
        mixture_entries([MixEntry(1, "random")], "x.pt", True)


@given(st.integers(0, 10_000), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_split_parts_are_within_one_of_shares(total: int, weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    parts = split(total, shares)
    assert sum(parts) == total
    assert all(abs(part - total * share) < 1 + 1e-6 for part, share in zip(parts, shares, strict=True))
    remainders = sorted(total * share - part for part, share in zip(parts, shares, strict=True))
    assert remainders[-1] - remainders[0] <= 1 + 1e-6  # larger remainders are rounded up


def test_split_gives_rest_to_largest_remainder() -> None:
    assert split(10, [0.26, 0.35, 0.39]) == [3, 3, 4]  # 2.6, 3.5, 3.9
    assert split(10, [0.1 + 0.2, 0.7]) == [3, 7]
    assert split(1, [0.5, 0.5]) == [1, 0]
