"""The figure of an episode, and playing its actions again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tdmpc2.config import parse_cfg
from tdmpc2.data.exchange.rows import OwnData
from tdmpc2.data.exchange.view import play_again, recorded_seed
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.play.collector import collect
from tests.data.exchange.test_minari import refused, run
from tests.helpers.toy_envs import FALLS, STANDS

pytest.importorskip("matplotlib")


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """Make two collections of a toy task in one directory, of two files each."""
    for seed in (1, 2):
        cfg = parse_cfg({"task": STANDS, "seed": seed, "episodes_per_task": 3, "episodes_per_file": 2})
        collect(cfg, None, tmp_path / "data")
    return tmp_path / "data"


def test_collected_episodes_are_played_again_from_their_own_seeds(collected: Path) -> None:
    """Each episode has a recorded seed, whichever file and collection it comes from."""
    data = OwnData.open(collected)
    assert len(data.index) == 6
    for number in range(6):
        seed = recorded_seed(data, number)
        assert seed is not None
        played = play_again(data.episode(number), seed)
        assert played.distance == 0
        assert len(played.frames) == 8


def test_episode_that_began_elsewhere_is_not_played(collected: Path) -> None:
    episode = OwnData.open(collected).episode(0)
    with pytest.raises(ValueError, match=r"does not begin as with seed=5 .* cannot be played again"):
        play_again(episode, 5)


def test_view_command_draws_and_films(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg")
    said = refused(capsys, "view", collected, "seed=7", f"figure={tmp_path / 'e.png'}")
    assert "seed is that of the environment of a video" in said
    words = ("view", collected, "episode=4", f"figure={tmp_path / 'e.png'}", f"video={tmp_path / 'e.mp4'}")
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "8 frames from seed" in said
    assert "observations are within 0 of the stored ones" in said
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert b"ftyp" in (tmp_path / "e.mp4").read_bytes()[:12]
    assert "exists: name another file" in refused(capsys, *words)


def test_view_of_data_without_seeds_asks_for_one(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store does not keep the seeds of its source files; a user who knows one may name it."""
    assert run("convert", collected, tmp_path / "store") == 0
    seed = recorded_seed(OwnData.open(collected), 2)
    words = ("view", tmp_path / "store", "episode=2", f"figure={tmp_path / 'e.png'}", f"video={tmp_path / 'e.mp4'}")
    assert "does not record the seeds of its episodes" in refused(capsys, *words)
    assert run(*words, f"seed={seed}") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [(("episode=6",), "has the episodes 0 to 5"), (("figure=x.pdf",), "x.pdf must end in .png")],
)
def test_careless_view_is_one_line(
    collected: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "view", collected, *words)


def test_view_of_terminating_episode(tmp_path: Path) -> None:
    collect(parse_cfg({"task": FALLS, "episodes_per_task": 1}), None, tmp_path / "falls")
    data = OwnData.open(tmp_path / "falls")
    seed = recorded_seed(data, 0)
    assert seed is not None
    assert len(play_again(data.episode(0), seed).frames) == 4


def test_episodes_in_half_precision_are_played_again(collected: Path, tmp_path: Path) -> None:
    cfg = parse_cfg({"task": STANDS})
    import_episodes([collected], tmp_path / "half", cfg.task, cfg.task_specs, dtype="float16")
    data = OwnData.open(tmp_path / "half")
    seed = recorded_seed(OwnData.open(collected), 0)
    assert seed is not None
    first = data.episode(0)
    off = first._replace(obs=first.obs + np.float32(4e-4))  # as far as rounding to half precision may be
    assert len(play_again(off, seed, data.source.dtype).frames) == 8
    with pytest.raises(ValueError, match="does not begin as"):
        play_again(off, seed)
