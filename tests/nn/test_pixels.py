"""The pixel encoder and the random shift against recorded numbers, and their properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.pixels import SHIFT, PixelEncoder, random_shift, shift_images
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.online_golden import golden_files, initial_weights

Golden = dict[str, Tensor]


@pytest.fixture(scope="module", params=golden_files("pixels"))
def recorded(request: pytest.FixtureRequest) -> Golden:
    load: Callable[[], Golden] = request.param
    return load()


@pytest.fixture(scope="module")
def encoder(recorded: Golden) -> PixelEncoder:
    encoder = PixelEncoder(9, 32, 512, 8)
    prefix = "_encoder.rgb."
    others = WorldModel(Config(task="walker-walk", model_size=5)).state_dict()
    shapes = {name: value.shape for name, value in others.items() if not name.startswith("_encoder.")}
    shapes |= {prefix + name: value.shape for name, value in encoder.state_dict().items()}
    weights = initial_weights(recorded, shapes)
    encoder.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    return encoder


def test_shift_images_of_recorded_shifts(recorded: Golden) -> None:
    images = shift_images(recorded["fwd/obs"], recorded["fwd/shift"])
    torch.testing.assert_close(images.float(), recorded["fwd/augmented"].float(), atol=2e-3, rtol=0)


def test_pixel_encoder_of_recorded_images(recorded: Golden, encoder: PixelEncoder) -> None:
    z = encoder(recorded["fwd/obs"], recorded["fwd/shift"])
    torch.testing.assert_close(z, recorded["fwd/z"], atol=1e-5, rtol=0)


def test_shift_images_middle_changes_nothing() -> None:
    images = torch.randint(256, (5, 9, 64, 64), dtype=torch.uint8)
    assert torch.equal(shift_images(images, torch.full((5, 2), SHIFT)), images)


def test_shift_images_first_number_moves_columns() -> None:
    images = torch.arange(64, dtype=torch.uint8).expand(1, 9, 64, 64)
    moved = shift_images(images, torch.tensor([[2 * SHIFT, SHIFT]]))
    assert moved[0, 0, 0, :2].tolist() == [3, 4]
    assert moved[0, 0, 0, -4:].tolist() == [63] * 4  # the border is repeated
    assert torch.equal(shift_images(images, torch.tensor([[SHIFT, 0]])), images)


def test_random_shift_of_one_seed_is_the_same_and_covers_all() -> None:
    first, again = (random_shift((4, 500), torch.device("cpu"), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (4, 500, 2)
    assert sorted(first.flatten().unique().tolist()) == list(range(2 * SHIFT + 1))


@pytest.mark.parametrize(("latent", "projected"), [(512, False), (128, True), (768, True)])
def test_pixel_encoder_of_other_latent_sizes_has_a_projection(latent: int, projected: bool) -> None:
    encoder = PixelEncoder(9, 32, latent, 8)
    names = {name.partition(".")[0] for name, _ in encoder.named_parameters()}
    assert names == {"2", "4", "6", "8"} | ({"10"} if projected else set())
    z = encoder(torch.randint(256, (2, 3, 9, 64, 64), dtype=torch.uint8))
    assert z.shape == (2, 3, latent)
    torch.testing.assert_close(z.unflatten(-1, (-1, 8)).sum(-1), torch.ones(2, 3, latent // 8))
