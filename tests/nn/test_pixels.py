"""The pixel encoder and the random shift: recorded numbers, and their properties."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.nn.layers import NormedLinear
from tdmpc2.nn.pixels import SHIFT, PixelEncoder, random_shift, shift_images
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.agents import small_config
from tests.helpers.online_golden import Recorded, agent_files, read
from tests.helpers.reference import shared_file


@pytest.fixture(scope="module", params=[path for path, _ in agent_files() if "pixels" in path.stem] or [None])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return read(request.param or shared_file("golden/online/pixels_5m.npz"))


def test_shift_images_of_recorded_shifts(recorded: Recorded) -> None:
    images = shift_images(recorded["fwd/obs"], recorded["fwd/shift"])
    torch.testing.assert_close(images.float(), recorded["fwd/augmented"].float(), atol=2e-3, rtol=0)


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


@pytest.mark.parametrize(("size", "latent"), [(1, 128), (5, 512), (19, 768)])
def test_pixel_encoder_of_other_sizes_has_a_projection(size: int, latent: int) -> None:
    model = WorldModel(Config(task="cup-catch", obs="rgb", model_size=size), torch.Generator().manual_seed(1))
    encoder = model.get_submodule("_encoder.rgb")
    names = {name.partition(".")[0] for name, _ in encoder.named_parameters()}
    assert names == {"2", "4", "6", "8"} | (set() if size == 5 else {"10"})
    assert size == 5 or isinstance(encoder["10"], NormedLinear)  # type: ignore[index]
    z = encoder(torch.randint(256, (2, 3, 9, 64, 64), dtype=torch.uint8))
    assert z.shape == (2, 3, latent)
    torch.testing.assert_close(z.unflatten(-1, (-1, 8)).sum(-1), torch.ones(2, 3, latent // 8))


@pytest.mark.parametrize("latent", [16, 64])  # convolutions of 4 channels give 64
def test_latents_of_images_stay_float32_beside_products_in_bf16(latent: int) -> None:
    """Where no linear map follows them, they were bf16, and with them the targets of the consistency loss."""
    sizes = {"model_size": None, "enc_dim": 8, "mlp_dim": 8, "num_q": 2, "num_channels": 4, "latent_dim": latent}
    agent = TDMPC2(Config(task="cup-catch", obs="rgb", update_precision="bf16", device="cpu", **sizes))
    with agent.autocast():
        z = agent.model.encode(torch.randint(256, (2, 9, 64, 64), dtype=torch.uint8))
    assert z.dtype == torch.float32
    assert not torch.equal(z, z.bfloat16().float())


@pytest.mark.parametrize("rows", [(), (1,), (2, 3)])
def test_pixel_encoder_keeps_the_rows_of_its_images(rows: tuple[int, ...]) -> None:
    """A single image without a batch dimension used to end in a RuntimeError of torch."""
    model = WorldModel(Config(task="cup-catch", obs="rgb", model_size=1), torch.Generator().manual_seed(1))
    images = torch.randint(256, (*rows, 9, 64, 64), dtype=torch.uint8)
    assert model.encode(images).shape == (*rows, 128)


def test_random_shift_is_off_while_acting() -> None:
    """The reference shifts the images it acts on, so that its actions are random without exploration noise."""
    agent = TDMPC2(small_config(task="walker-walk", mode="online", obs="rgb", mpc=False))
    images = torch.randint(256, (9, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = agent.model.policy_mean(agent.model.encode(images[None]), None)[0]
    for _ in range(3):
        torch.testing.assert_close(torch.as_tensor(agent.act(images, t0=True, eval_mode=True)), expected)


@pytest.mark.parametrize("mpc", [True, False], ids=["plan", "policy"])
def test_images_are_shifted_while_acting_if_asked(mpc: bool) -> None:
    """``augment_eval=true`` acts as the reference does."""
    images = torch.randint(256, (9, 64, 64), dtype=torch.uint8)
    small = small_config(task="walker-walk", mode="online", obs="rgb", mpc=mpc)
    still, moved = (TDMPC2(small.replace(augment_eval=asked)) for asked in (False, True))
    moved.load(still.model.state_dict())
    seen = []
    encode = moved.model.encode
    moved.model.encode = lambda obs, task=None, shift=None: seen.append(shift) or encode(obs, task, shift)  # type: ignore[method-assign]
    actions = [torch.as_tensor(agent.player(seed=1).act(images, t0=True)) for agent in (still, moved, moved)]
    shifts = [shift for shift in seen if shift is not None]
    assert [tuple(shift.shape) for shift in shifts] == [(1, 2)] * 2
    torch.testing.assert_close(actions[1], actions[2], rtol=0, atol=0)  # the same seed
    assert not torch.equal(actions[0], actions[1])


def test_augment_eval_needs_images() -> None:
    with pytest.raises(ValueError, match=r"augment_eval=true shifts images, and obs=state has none"):
        Config(task="walker-walk", mode="online", augment_eval=True)


def almost_equal_images(count: int) -> Tensor:
    """Make images that differ in a small square, as those of a simulator do: uint8 [N, 9, 64, 64]."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (9, 64, 64), dtype=torch.uint8, generator=generator).repeat(count, 1, 1, 1)
    for image, place in zip(images, torch.randint(56, (count,), generator=generator).tolist(), strict=True):
        image[:, place : place + 8, place : place + 8] = 255
    return images


def encoder_of(size: int) -> PixelEncoder:
    model = WorldModel(Config(task="cup-catch", obs="rgb", model_size=size), torch.Generator().manual_seed(1))
    encoder = model.get_submodule("_encoder.rgb")
    assert isinstance(encoder, PixelEncoder)
    return encoder.requires_grad_(False)


@pytest.mark.parametrize(("size", "gain"), [(1, 30), (5, 1000)])
def test_fitted_encoder_tells_images_apart(size: int, gain: float) -> None:
    encoder, images = encoder_of(size), almost_equal_images(40)
    before = encoder(images).var(0).mean()
    encoder.fit(images, lambda _: None)
    assert encoder(images).var(0).mean() > gain * before
    x = images / 255 - 0.5
    for name in ("2", "4", "6", "8"):
        x = encoder[name](x if name == "2" else x.relu())
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-3)
        torch.testing.assert_close(x.var((0, 2, 3), correction=0), torch.ones(32), rtol=0, atol=1e-2)


def test_encoder_is_fitted_to_the_images_of_all_processes() -> None:
    """Two processes have a half each, and scale by what both see."""
    images, half = almost_equal_images(40), 20
    whole, alone = encoder_of(1), encoder_of(1)
    sums: list[Tensor] = []
    whole.fit(images, lambda found: sums.extend(tensor.clone() for tensor in found))

    def average(found: Sequence[Tensor]) -> None:
        for tensor in found:
            tensor.copy_(sums.pop(0))

    alone.fit(images[:half], average)
    for one, other in zip(whole.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [1, 5])
def test_encoder_fitted_to_equal_images_stays_finite(size: int) -> None:
    encoder = encoder_of(size)
    encoder.fit(torch.zeros(4, 9, 64, 64, dtype=torch.uint8), lambda _: None)
    assert all(weight.isfinite().all() for weight in encoder.parameters())
    assert encoder(almost_equal_images(4)).isfinite().all()
