"""Command lines of TD-MPC2 that learn online, as they are typed: what they train and from what."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from tdmpc2.agent import TDMPC2
from tdmpc2.commands.train import main
from tdmpc2.config import Config


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, Config, Config | None]]]:
    """Record the runs that a command line would start, without starting them."""
    runs: list[tuple[str, Config, Config | None]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tdmpc2.training.online.train_online", lambda *args: runs.append(("online", *args)))
    monkeypatch.setattr("tdmpc2.training.offline.train", lambda *args: runs.append(("offline", *args)))
    monkeypatch.setattr("tdmpc2.studies.curves.draw_run", lambda _: "")
    yield runs
    GlobalHydra.instance().clear()


def test_data_of_a_run_that_learns_online_are_refused(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever wanted to start from stored episodes trained from nothing."""
    with pytest.raises(SystemExit):
        main(["task=walker-walk", "mode=online", "data_dir=data/walker"])
    assert "data_dir=data/walker: a run that learns online does not read it" in capsys.readouterr().err
    assert not trained
    main(["task=walker-walk", "data_dir=null"])
    assert [run[0] for run in trained] == ["online"]


def test_keys_of_online_runs_are_named_where_they_are_not_read(
    trained: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        main(["steps=10", "utd=2", "num_envs=3", "env_workers=1", "teacher_config=null"])
        main(["task=walker-walk", "max_episodes_per_task=3", "fit_encoder=true"])
        main(["task=walker-walk", "obs=rgb", "fit_encoder=true", "seed_actions=pink"])
    finally:
        logger.removeHandler(caplog.handler)
    assert "num_envs, utd: a run that learns offline does not read them" in caplog.messages
    assert "max_episodes_per_task: a run that learns online without demonstrations does not read it" in caplog.messages
    fitted = "fit_encoder: a run without an encoder of images that begins at random does not read it"
    assert [message for message in caplog.messages if "encoder" in message or "seed_actions" in message] == [fitted]
    assert [run[0] for run in trained] == ["offline", "online", "online"]


@pytest.mark.parametrize(("line", "mode", "keys"), [
    ("task=walker-walk model_size=1 steps=50000", "online", {"steps": 50_000, "policy_loss": "tdmpc2"}),
    ("task=dog-run steps=7000000 exp_name=mine save_video=true", "online", {"steps": 7_000_000, "save_video": True}),
    ("task=walker-walk model_size=5 seed=2 episodic=true", "online", {"model_size": 5, "episodic": True}),
    ("mode=online tasks=[walker-walk,walker-run] num_envs=2 utd=0.075", "online", {"num_envs": 2, "utd": 0.075}),
    ("task=walker-walk data_dir=data/mt30", "offline", {"data_dir": "data/mt30", "policy_loss": "opt"}),
    ("steps=10", "offline", {"data_dir": "data/mt30", "task": "mt30"}),
])  # fmt: skip
def test_train_command_as_typed_learns_online_or_offline(
    trained: list[Any], line: str, mode: str, keys: dict[str, Any]
) -> None:
    main(line.split())
    ((how, cfg, _),) = trained
    assert how == cfg.mode == mode
    assert {key: getattr(cfg, key) for key in keys} == keys


@pytest.mark.parametrize(("line", "checkpoint"), [
    ("task=walker-walk", None),  # the composed teacher is that of offline training on mt30
    ("task=walker-walk teacher_config=null", None),
    ("task=walker-walk teacher_config.checkpoint=x.pt", "x.pt"),
    ("steps=10", "models/mt30-317M.pt"),
])  # fmt: skip
def test_train_command_online_has_a_teacher_only_if_one_is_named(
    trained: list[Any], line: str, checkpoint: str | None
) -> None:
    main(line.split())
    ((_, _, teacher),) = trained
    assert (teacher and teacher.checkpoint) == checkpoint


@pytest.mark.parametrize("words", [
    ["teachers={walker-walk: a.pt, walker-run: b/c-1.pt}"],
    ["teachers=[walker-walk a.pt, walker-run b/c-1.pt]"],
    ["teachers=walker-walk a.pt,walker-run b/c-1.pt"],
    ["--teachers", "{walker-walk: a.pt, walker-run: b/c-1.pt}"],
])  # fmt: skip
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_train_command_reads_teachers_of_tasks(trained: list[Any], words: list[str], mode: str) -> None:
    """The teachers of single tasks replace the one teacher that the configuration files name."""
    main([*words, f"mode={mode}"])
    ((how, cfg, teacher),) = trained
    assert (how, teacher) == (mode, None)
    assert [(entry.task, entry.checkpoint) for entry in cfg.teachers] == [
        ("walker-run", "b/c-1.pt"), ("walker-walk", "a.pt"),
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "keys"), [
    ("task=walker-walk", {"model_size": 5, "num_q": 5, "tasks": ("walker-walk",)}),  # the file's own sizes
    ("task=walker-walk model_size=1", {"model_size": 1, "num_q": 2}),  # refused when the weights are loaded
    ("task=walker-walk freeze=encoder,Q seed_steps=10", {"freeze": ("encoder", "Q"), "seed_steps": 10}),
    ("task=walker-run mode=online", {"tasks": ("walker-run",), "mode": "online", "policy_loss": "tdmpc2"}),
    ("task=walker-flip", {"tasks": ("walker-flip",), "num_tasks": 31}),  # a 31st task
    ("mode=online tasks=[walker-run,walker-walk]", {"tasks": ("walker-run", "walker-walk"), "num_q": 5}),
])  # fmt: skip
def test_train_command_from_a_file_of_many_tasks_takes_what_the_file_decides(
    trained: list[Any], line: str, keys: dict[str, Any], many: Path
) -> None:
    main([*line.split(), f"checkpoint={many}"])
    ((how, cfg, teacher),) = trained
    assert (how, cfg.task, teacher) == ("online", "mt30", None)
    assert {key: len(cfg.task_specs) if key == "num_tasks" else getattr(cfg, key) for key in keys} == keys
    if len(cfg.tasks) == 1:
        assert cfg.run_dir == Path("logs", cfg.tasks[0], "1", "default")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "mt30.pt"
    TDMPC2(Config(model_size=5)).save(path)
    return path
