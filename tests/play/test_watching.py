"""Watching an agent play: the numbers on the pictures, the video, the window."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.commands.play import main
from tdmpc2.envs.rendering import context_module
from tdmpc2.play import watching
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.rollout import Job
from tdmpc2.play.watching import Moment, watch
from tdmpc2.play.window import Window, captioned, why_no_window
from tests.helpers.agents import make_teacher, small_config
from tests.helpers.toy_envs import STANDS_FOR


def video_frames(path: Path) -> list[np.ndarray]:
    return list(pytest.importorskip("imageio.v3", reason="videos need imageio").imiter(path, plugin="FFMPEG"))


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use SDL's display for tests, which is in memory only, and do not wait between frames."""
    pytest.importorskip("pygame", reason="the window is pygame's")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr("tdmpc2.play.watching.frame_rate", lambda env: 1000.0)


@pytest.mark.parametrize("mpc", [True, False])
def test_watched_episode_is_the_first_that_an_evaluation_scores(agent: TDMPC2, mpc: bool) -> None:
    """A user who sees a return of 612 in a table and plays the file has to see the same episode."""
    cfg = agent.cfg.replace(eval_episodes=1, mpc=mpc)
    playing = make_teacher(cfg)
    seen: list[Moment] = []
    watched = watch(playing, Job(0, cfg.eval_seed), lambda moment: seen.append(moment) or True)
    assert watched.episode_return == pytest.approx(evaluate(playing, quiet=True).tasks[0].returns[0], abs=1e-6)
    assert (watched.steps, watched.whole) == (STANDS_FOR, True)
    assert [moment.step for moment in seen] == list(range(STANDS_FOR))
    assert seen[0].episode_return == 0 < seen[-1].episode_return < watched.episode_return
    assert [int(moment.frame[0, 0, 0]) for moment in seen] == [20 * t for t in range(STANDS_FOR)]
    assert len({moment.value for moment in seen}) == (STANDS_FOR if mpc else 1)  # a new value function is flat
    assert all(np.isfinite(moment.value) for moment in seen)
    assert seen[0].lines()[3].startswith("planned value " if mpc else "policy value ")


def test_expected_return_of_a_plan_is_the_weighted_value_of_its_elites(agent: TDMPC2) -> None:
    player = agent.player(num_envs=2, seed=1, mpc=True)
    with pytest.raises(ValueError, match="call act"):
        player.expected_return(np.zeros((2, 4), np.float32))
    player.act(np.zeros((2, 4), np.float32), True)
    value = player.expected_return(np.zeros((2, 4), np.float32))
    last = player._last
    assert last is not None
    assert value.shape == (2,)
    low, high = last.elite_value.amin(-1).numpy(), last.elite_value.amax(-1).numpy()
    assert ((low <= value + 1e-6) & (value <= high + 1e-6)).all()


def test_caption_covers_the_corner_and_leaves_the_rest() -> None:
    frame = np.full((400, 500, 3), 200, np.uint8)
    drawn = captioned(frame, ["walker-run", "return 12.5"])
    assert drawn.shape == frame.shape
    assert (drawn[:40, :80] != 200).any()
    assert (drawn[200:] == 200).all()
    assert captioned(np.zeros((48, 32, 3), np.uint8), ["x"]).shape == (576, 384, 3)  # enlarged, to fit letters
    with pytest.raises(ValueError, match=r"render\(\) returns float64"):
        captioned(np.zeros((4, 4, 3)), [])


@pytest.mark.usefixtures("no_display")
def test_play_without_a_display_writes_a_video_and_says_where(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a display a video is written instead of a window, and an earlier video is kept."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main([model, "episodes=2", "num_threads=1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "No window (there is no display): a video is written"
    assert re.fullmatch(r"tests.helpers.toy_envs:Stands-v0, seed 100: return -?\d+\.\d in 7 steps", lines[1])
    assert lines[3].startswith("Mean return of 2 episodes: ")
    videos = [line.removeprefix("Video: ") for line in lines if line.startswith("Video: ")]
    assert [Path(video).suffix for video in videos] == [".mp4", ".mp4"]
    assert videos[1] == videos[0].replace(".mp4", "-2.mp4")
    assert len(video_frames(tmp_path / videos[0])) == 2 * STANDS_FOR
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["toy.pt", *videos])


@pytest.mark.usefixtures("screen")
def test_play_in_a_window_shows_every_step_and_writes_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[np.ndarray] = []
    monkeypatch.setattr(watching.Window, "show", lambda self, frame, fps: shown.append(frame) or True)
    main([model, "window=true"])
    assert len(shown) == STANDS_FOR
    assert "seed 100: return" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["toy.pt"]


@pytest.mark.usefixtures("screen")
def test_window_ends_when_it_is_closed_and_waits_while_paused() -> None:
    import pygame

    frame = np.zeros((40, 60, 3), np.uint8)

    def press(key: int) -> None:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))

    with Window("test") as window:
        assert os.environ["SDL_FRAMEBUFFER_ACCELERATION"] == "0"  # OpenGL ended the program with X_GLXMakeCurrent
        assert window.show(frame, 1000)
        assert pygame.display.get_surface().get_size() == (60, 40)
        press(pygame.K_SPACE)
        press(pygame.K_SPACE)  # paused, and on again
        assert window.show(frame + 1, 1000)
        assert pygame.display.get_surface().get_at((5, 5))[:3] == (1, 1, 1)
        press(pygame.K_SPACE)
        press(pygame.K_ESCAPE)  # also while it is paused
        assert not window.show(frame, 1000)


@pytest.mark.usefixtures("screen")
def test_episode_that_is_left_is_no_result(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching.Window, "show", lambda self, frame, fps: False)
    main([model, "window=true", "episodes=3"])
    out = capsys.readouterr().out
    assert "in 0 steps, left before its end" in out
    assert "Mean return" not in out


@pytest.mark.usefixtures("no_display")
def test_reasons_against_a_window_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_window() == "there is no display"
    monkeypatch.setattr("tdmpc2.play.window.missing_packages", lambda extra: ["pygame"])
    assert why_no_window() == "a window needs pygame: pip install pygame pillow"


@pytest.mark.usefixtures("no_display")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["window=true"], "window=true: there is no display. window=false writes a video"),
        (["out=toy.pt"], "out=toy.pt must end in .mp4"),
        (["out=there.mp4"], "there.mp4 exists"),
        (["sed=3"], "Unknown key 'sed'"),
        (["seed=-1"], "must be at least 0"),
        (["window=perhaps"], "not one of auto, true, false"),
    ],
)
def test_play_refuses_what_it_cannot_do(
    model: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.mp4").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main([model, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.mp4").read_text() == "mine"


def test_play_of_many_tasks_asks_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TDMPC2(small_config()).save(tmp_path / "many.pt")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "many.pt"), "window=false"])
    assert "plays 30 tasks" in (error := capsys.readouterr().err)
    assert "task=walker-stand" in error


def test_play_films_a_simulated_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The video shows the simulator's picture with the numbers on it; the planner's budget may be typed."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    try:
        context_module()
    except ValueError as error:
        pytest.skip(f"no OpenGL here: {error}")
    TDMPC2(small_config()).save(tmp_path / "many.pt")
    count = iter(range(100))
    shower = watching._shower

    def ten_steps(*where: Any) -> watching.Show:
        show = shower(*where)
        return lambda moment: show(moment) and next(count) < 9

    monkeypatch.setattr(watching, "_shower", ten_steps)
    out = tmp_path / "spin.mp4"
    main([str(tmp_path / "many.pt"), "task=pendulum-spin", "window=false", f"out={out}", "iterations=1"])
    frames = video_frames(out)
    assert len(frames) == 10
    assert frames[0].shape == (384, 384, 3)


def test_key_that_play_does_not_read_is_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(SystemExit):
            main([str(tmp_path / "none.pt"), "eval_noise=true", "env_workers=2", "num_samples=16"])
    finally:
        logger.removeHandler(caplog.handler)
    assert "env_workers, eval_noise: play does not read them" in caplog.messages
