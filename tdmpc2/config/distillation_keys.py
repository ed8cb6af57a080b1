"""Entries of the key ``distillation_targets``: what a student can learn from its teacher."""

from __future__ import annotations

from collections.abc import Iterable

from tdmpc2.config.keys import MOST_COEF
from tdmpc2.support.text import cut
from tdmpc2.tasks import nearest


def uncached_targets(names: Iterable[str]) -> list[str]:
    """List the targets that a cache of the teacher's outputs cannot serve."""
    from tdmpc2.distillation.targets import TARGETS

    return [name for name in names if TARGETS[name].cached_as is None]


def beforehand(names: Iterable[str]) -> list[str]:
    """List the targets whose outputs have to be there before training."""
    from tdmpc2.distillation.targets import TARGETS

    return [name for name in names if not TARGETS[name].live]


def distillation_terms(entries: Iterable[str], default_weight: float) -> dict[str, float]:
    """Weight by target of the entries ``NAME`` and ``NAME WEIGHT`` of the key ``distillation_targets``, in their order.

    Raises:
        ValueError: an unknown name, one that is there twice, or a weight that is not a number of at least zero.
    """
    from tdmpc2.distillation.targets import TARGETS  # here, so that listing the keys does not load torch

    terms: dict[str, float] = {}
    for entry in entries:
        name, *rest = entry.split() or [""]
        where = f"distillation_targets: '{cut(entry, 80)}'"
        if name not in TARGETS:
            subject = where if entry == name else f"distillation_targets: '{cut(name, 40)}' in '{cut(entry, 80)}'"
            raise ValueError(f"{subject} is not one of {', '.join(TARGETS)}.{nearest(name, TARGETS)}")
        if name in terms:
            raise ValueError(f"{where}: '{name}' is there twice")
        try:
            (weight,) = (float(item) for item in rest) if rest else (default_weight,)
        except ValueError:
            raise ValueError(f"{where} is not 'NAME' or 'NAME WEIGHT', for example 'value 0.1'") from None
        if not 0 <= weight <= MOST_COEF:
            raise ValueError(f"{where}: the weight {weight} must be between 0 and {MOST_COEF:g}")
        terms[name] = weight
    if not terms:
        raise ValueError("distillation_targets must name at least one target; teacher_config=null trains without")
    return terms
