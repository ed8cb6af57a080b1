"""The encoder of images is scaled to the first batch, once, where it begins at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdmpc2.nn.pixels import PixelEncoder
from tdmpc2.training.learner import fits_encoder
from tdmpc2.training.online import train_online
from tests.helpers.online import config
from tests.helpers.toy_envs import SEES

BOTH: dict[str, Any] = {"task": SEES, "obs": "rgb+state", "horizon": 2}


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shapes of the images that encoders are fitted to."""
    shapes: list[tuple[int, ...]] = []
    fit = PixelEncoder.fit
    monkeypatch.setattr(
        PixelEncoder,
        "fit",
        lambda self, images, average: (shapes.append(tuple(images.shape)), fit(self, images, average))[1],
    )
    return shapes


@pytest.mark.parametrize("keys", [{"obs": "rgb", "horizon": 2}, BOTH], ids=["images", "images and numbers"])
def test_encoder_is_fitted_once(keys: dict[str, Any], tmp_path: Path, fits: list[tuple[int, ...]]) -> None:
    cfg = config(tmp_path, **keys)
    train_online(cfg, None)
    ((count, *shape),) = fits
    assert (count, tuple(shape)) == (cfg.batch_size * (cfg.horizon + 1), cfg.image_shape)
    train_online(cfg.replace(steps=cfg.steps + 7), None)
    assert len(fits) == 1, "a continued run has learned with it"


def test_encoder_begins_as_in_td_mpc2_if_asked(tmp_path: Path, fits: list[tuple[int, ...]]) -> None:
    train_online(config(tmp_path, **BOTH, fit_encoder=False), None)
    assert not fits


@pytest.mark.parametrize(
    ("keys", "fitted"),
    [
        ({}, True),
        ({"obs": "state", "task": "cup-catch"}, False),
        ({"checkpoint": "a.pt"}, False),
        ({"checkpoint": "a.pt", "reset": ("encoder",)}, True),
        ({"checkpoint": "a.pt", "freeze": ("encoder",)}, False),
    ],
)
def test_only_an_encoder_of_images_that_begins_at_random_is_fitted(
    tmp_path: Path, keys: dict[str, Any], fitted: bool
) -> None:
    cfg = config(tmp_path, **BOTH)
    assert fits_encoder(cfg.replace(**keys)) is fitted
