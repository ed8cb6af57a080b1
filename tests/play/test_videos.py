"""Videos of evaluations."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tdmpc2 import load_agent
from tdmpc2.agent import TDMPC2
from tdmpc2.config import parse_cfg
from tdmpc2.envs.rendering import context_module
from tdmpc2.envs.wrappers import frame_rate
from tdmpc2.play import results
from tdmpc2.play.actors import random_actor
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.rollout import Episode, Job, first_frames, play
from tdmpc2.play.scoring import score_files
from tests.helpers.toy_envs import SEES, STANDS, STANDS_FOR, ToyEnv


def decoded(path: Path) -> Iterator[np.ndarray]:
    return pytest.importorskip("imageio.v3", reason="videos need imageio").imiter(path, plugin="FFMPEG")


class Films:
    """Keeps the films of an evaluation in memory."""

    class Film(list[np.ndarray]):
        fps = 0.0

    def __init__(self) -> None:
        self.made: list[tuple[str, Films.Film]] = []

    def __call__(self, task: str) -> nullcontext[Film]:
        self.made.append((task, self.Film()))
        return nullcontext(self.made[-1][1])


def test_video_holds_every_frame(tmp_path: Path, agent: TDMPC2) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    path = tmp_path / "new" / "stands.mp4"
    evaluate(agent, agent.cfg.replace(save_video=True), quiet=True, film=lambda _: results.video_file(path))
    frames = list(decoded(path))
    assert len(frames) == STANDS_FOR
    assert frames[0].shape == (48, 32, 3)
    brightness = [frame.mean() for frame in frames]
    np.testing.assert_allclose(brightness, [20 * t for t in range(STANDS_FOR)], atol=6)  # lossy
    assert [entry.name for entry in path.parent.iterdir()] == ["stands.mp4"]


def test_video_shows_first_episode_only(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(ToyEnv, "render", lambda self: drawn.append(self.start) or np.zeros((2, 2, 3), np.uint8))
    films = Films()
    cfg = agent.cfg.replace(save_video=True, eval_episodes=9)
    evaluate(agent, cfg, quiet=True, film=films)
    ((task, frames),) = films.made
    assert (task, len(frames)) == (STANDS, STANDS_FOR)
    (first,) = play(cfg, random_actor(cfg, 0), [Job(0, cfg.eval_seed)])
    assert drawn == [pytest.approx(first.obs[0, 0])] * STANDS_FOR
    evaluate(agent, cfg.replace(save_video=False), quiet=True, film=films)
    evaluate(agent, cfg, quiet=True)
    assert (len(films.made), len(drawn)) == (1, STANDS_FOR)


def test_frames_of_a_video_are_written_as_they_are_drawn(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of eight episodes were kept until their end: 1.7 GB where these have 500 steps."""
    alive, most = 0, 0

    class Frame(np.ndarray):
        """An array that can be referred to weakly."""

    def render(env: ToyEnv) -> np.ndarray:
        nonlocal alive, most
        frame = np.zeros((2, 2, 3), np.uint8).view(Frame)
        weakref.finalize(frame, end)
        alive += 1
        most = max(most, alive)
        return frame

    def end() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(ToyEnv, "render", render)
    nowhere = SimpleNamespace(append=lambda frame: None, fps=0.0)
    evaluate(agent, agent.cfg.replace(save_video=True), quiet=True, film=lambda _: nullcontext(nowhere))
    assert 1 <= most <= 2


def test_video_plays_at_the_environment_s_own_rate(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cheetah's video had half its speed, and a fish's twice: all were of 25 frames a second."""
    monkeypatch.setattr(ToyEnv, "metadata", {"render_modes": ["rgb_array"], "render_fps": 50})
    films = Films()
    for workers in (0, 1):
        evaluate(agent, agent.cfg.replace(save_video=True, env_workers=workers), quiet=True, film=films)
    assert [film.fps for _, film in films.made] == [50.0, 40.0]  # the worker has the class as it is
    for metadata, rate in (({"render_fps": 12}, 12.0), ({}, 25.0), ({"render_fps": None}, 25.0), (None, 25.0)):
        assert frame_rate(SimpleNamespace(metadata=metadata)) == rate


def test_video_file_has_the_rate_it_is_given(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v3", reason="videos need imageio")
    results.write_video(tmp_path / "x.mp4", [np.zeros((16, 16, 3), np.uint8)] * 10, 50.0)
    assert imageio.immeta(tmp_path / "x.mp4", plugin="FFMPEG")["fps"] == 50.0


def test_evaluation_keeps_no_observations(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of images took gigabytes, and were thrown away."""
    played: list[Episode] = []

    def noted(*args: Any, **keys: Any) -> list[Episode]:
        played.extend(play(*args, **keys))
        return played

    monkeypatch.setattr("tdmpc2.play.evaluation.play", noted)
    result = evaluate(agent, agent.cfg.replace(eval_episodes=1), quiet=True)
    (episode,) = played
    assert (len(episode.obs), len(episode.action), episode.steps) == (0, 0, STANDS_FOR)
    assert result.tasks[0].returns == (episode.episode_return,)


def test_video_of_pictures_of_different_sizes_keeps_that_of_the_first(tmp_path: Path) -> None:
    """Written on as they were, the rest of the video was sheared noise."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    sizes = [(48, 64), (32, 32), (80, 96)]
    with results.video_file(tmp_path / "x.mp4") as video:
        for height, width in sizes:
            video.append(np.full((height, width, 3), 200, np.uint8))
        with pytest.raises(ValueError, match=r"a picture of shape \[48, 64, 4\] is not of height, width and 3 colours"):
            video.append(np.zeros((48, 64, 4), np.uint8))
    frames = list(decoded(tmp_path / "x.mp4"))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert frames[1][:4].mean() < 20, "a border"
    assert frames[1][20:28, 28:36].mean() > 180, "the picture in its middle"
    assert frames[2].mean() > 180, "the middle of a larger picture"


def test_error_of_the_agent_while_a_video_is_written_is_not_one_of_writing(tmp_path: Path) -> None:
    """A GPU without memory was said to be a file that could not be written."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    with pytest.raises(RuntimeError, match="out of memory"), results.video_file(tmp_path / "x.mp4"):
        raise RuntimeError("out of memory")


def test_first_frames_of_a_task_that_observes_images_are_drawn() -> None:
    assert len(first_frames(SEES, "rgb+state")) == 2


def test_video_without_library_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"save_video needs .*: pip install imageio imageio-ffmpeg$"):
        results.write_video(tmp_path / "x.mp4", [np.zeros((16, 16, 3), np.uint8)])
    assert not list(tmp_path.iterdir())


def test_video_of_simulated_task_moves(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    try:
        context_module()
    except ValueError as error:
        pytest.skip(f"no OpenGL here: {error}")
    cfg = parse_cfg({"task": "pendulum-spin"})
    (episode,) = play(cfg, random_actor(cfg, 0), [Job(0, 0)], render=[0], max_steps=40)
    results.write_video(tmp_path / "pendulum.mp4", episode.frames, episode.fps)
    frames = list(decoded(tmp_path / "pendulum.mp4"))
    assert len(frames) == 40
    assert frames[0].shape == (384, 384, 3)
    assert np.abs(frames[0].astype(int) - frames[39]).max() > 50  # it moves


def test_score_of_both_plays_the_same_episodes_with_and_without_planning(
    agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    agent.save(tmp_path / "x.pt")
    score_files(["x.pt"], {"mpc": "both", "eval_episodes": 2, "device": "cpu", "compile": "false"})
    *_, difference, last = capsys.readouterr().out.splitlines()
    folders = sorted(path.parent for path in tmp_path.rglob("results.json"))
    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert [result["protocol"]["action"] for result in found] == ["planner", "policy"]
    planned, alone = (result["normalized_score"] for result in found)
    assert planned != alone
    assert difference.startswith(f"x.pt: planner minus policy: {planned - alone:+.2f} (95 % interval [")
    assert last.startswith(f"Return: {planned:.2f} with planning, {alone:.2f} by the policy alone")


def test_score_is_compared_with_that_of_random_actions_in_the_same_episodes(
    agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A return of 50 told a newcomer nothing as long as it was not known what chance has."""
    monkeypatch.chdir(tmp_path)
    agent.save(tmp_path / "x.pt")
    keys = {"mpc": False, "eval_episodes": 3, "device": "cpu", "compile": "false"}
    score_files(["x.pt", "random"], keys)
    out = capsys.readouterr().out
    cfg = agent.cfg.replace(mpc=False, eval_episodes=3)
    jobs = [Job(0, cfg.eval_seed + k) for k in range(3)]
    chance = np.mean([e.episode_return for e in play(cfg, random_actor(cfg, cfg.seed), jobs)])
    own = evaluate(load_agent("x.pt", **keys), quiet=True).normalized_score
    assert f"x.pt minus random actions: {own - chance:+.2f} (95 % interval [" in out
    assert out.splitlines()[-1] == f"Return: {own:.2f} (random actions: {chance:.2f})"
    kept = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("results.json")}
    assert kept.keys() == {"eval-x", "eval-x-random"}
    assert kept["eval-x-random"]["normalized_score"] == chance
    assert kept["eval-x-random"]["protocol"]["checkpoint"] == "random actions"
    score_files(["x.pt", "random"], {**keys, "mpc": "both"})
    assert "x.pt, policy minus random actions: " in capsys.readouterr().out


def test_chance_is_kept_beside_the_directory_of_work(
    agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """work_dir=. has no name to add to, which was found when all had been played."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    agent.save("x.pt")
    score_files(["x.pt", "random"], {"mpc": False, "eval_episodes": 1, "device": "cpu", "work_dir": "."})
    assert (tmp_path / "here" / "results.json").exists()
    assert (tmp_path / "here-random" / "results.json").exists()


def test_error_of_playing_is_not_one_of_the_video(tmp_path: Path) -> None:
    """A pipe that had closed was said to be a video that could not be written."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")

    def full(_: Any) -> None:
        raise OSError("no room")

    def film(name: str, error: OSError | None) -> None:
        with results.video_file(tmp_path / name) as video:
            video.append(np.zeros((16, 16, 3), np.uint8))
            if error:
                raise error
            video._frames = SimpleNamespace(send=full, close=lambda: None)
            video.append(np.zeros((16, 16, 3), np.uint8))

    with pytest.raises(BrokenPipeError):
        film("x.mp4", BrokenPipeError())
    with pytest.raises(ValueError, match=r"Could not write .*y\.mp4: no room"):
        film("y.mp4", None)
    assert not list(tmp_path.iterdir())


def test_score_of_a_file_says_where_its_video_is(
    agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newcomer used to find the video only by listing the directory."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    monkeypatch.chdir(tmp_path)
    agent.save(tmp_path / "x.pt")
    score_files(["x.pt", "x.pt"], {"save_video": True, "eval_episodes": 1, "device": "cpu", "compile": "false"})
    said = capsys.readouterr().out
    videos = [line.removeprefix("Video: ") for line in said.splitlines() if line.startswith("Video: ")]
    assert len(videos) == 2
    assert all((tmp_path / video).stat().st_size for video in videos)
    assert "x.pt minus x.pt: +0.00 (no interval: one episode a task)" in said
    assert "-: no interval, which takes more than one episode a task (eval_episodes)" in said
