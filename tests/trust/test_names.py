"""Names that people choose work wherever they are used, and distinct names stay distinct."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.commands import hydra_app
from tdmpc2.config import Config
from tdmpc2.support.names import LONGEST, safe_name
from tdmpc2.tracking.sender import Sender
from tdmpc2.tracking.wandb import WandbRun
from tdmpc2.training.run_dir import lock
from tdmpc2.training.scoring import video_name

#: What W&B accepts as the name of an artifact; Windows accepts all these letters, too.
ALLOWED = re.compile(r"[A-Za-z0-9_.-]{1,128}")
HARD = [
    "lr=1e-3", "my run", "sweep/lr3", "my_tasks:Mine-v0", "x" * 300, "größe", "..", ".", ".hidden", "ends.", "CON",
    "nul.txt", "a\0b", "a\nb", "日本語", "a+b", "C:\\x", "\ud800", "", " ",
]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_safe_name_fits_folders_artifacts_and_windows(text: str) -> None:
    name = safe_name(text)
    assert ALLOWED.fullmatch(name)
    assert not name.startswith(".")
    assert not name.endswith(".")
    assert not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)


@pytest.mark.parametrize("text", ["default", "3-5-ablation", "weight_0.25", "lr_0.1-batch_size_64", "a--b"])
def test_safe_name_leaves_a_good_name_as_it_is(text: str) -> None:
    assert safe_name(text) == text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=140), min_size=2, max_size=8, unique=True))
def test_safe_name_keeps_distinct_texts_distinct(texts: list[str]) -> None:
    assert len({safe_name(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", HARD)
def test_safe_name_of_a_safe_name_is_another_one(text: str) -> None:
    """A user may type the safe name of another text, which must not collide with it."""
    assert safe_name(safe_name(text)) != safe_name(text)


@pytest.mark.parametrize("name", HARD[:-2])
def test_run_directory_of_any_name_can_be_made_and_locked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long name used to fail with `File name too long`, and the advice led all runs to one directory."""
    monkeypatch.chdir(tmp_path)
    run_dir = Config(exp_name=name).run_dir
    assert run_dir.parent == Path("logs/mt30/1")
    with lock(run_dir):
        run_dir.mkdir(parents=True)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_run_directory_of_a_task_with_a_module_has_no_colon() -> None:
    spec = {"name": "my_tasks:Mine-v0", "obs_dim": 3, "action_dim": 1, "episode_length": 50}
    run_dir = Config(task="my_tasks:Mine-v0", task_specs=(spec,)).run_dir
    assert run_dir.parts[1].startswith("my_tasks_Mine-v0--")
    assert ":" not in str(run_dir)


@pytest.mark.parametrize("name", ["lr=1e-3", "sweep/lr3"])
def test_run_directory_that_an_older_version_began_is_continued(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = Path("logs/mt30/1") / name
    old.mkdir(parents=True)
    assert Config(exp_name=name).run_dir != old, "an empty directory is no run"
    (old / "run.json").write_text("{}")
    assert Config(exp_name=name).run_dir == old


def sweep(monkeypatch: pytest.MonkeyPatch, dirname: str) -> None:
    job = SimpleNamespace(override_dirname=dirname)
    settings = SimpleNamespace(mode=SimpleNamespace(name="MULTIRUN"), job=job)
    monkeypatch.setattr(hydra_app.HydraConfig, "get", lambda: settings)


@pytest.mark.parametrize(
    ("dirname", "name"),
    [
        ("student_config.distillation_weight=0.25", "distillation_weight_0.25"),
        ("student_config.lr=0.1,student_config.batch_size=64", "lr_0.1-batch_size_64"),
        ("", "default"),
    ],
)
def test_sweep_name_of_plain_values_is_as_before(monkeypatch: pytest.MonkeyPatch, dirname: str, name: str) -> None:
    sweep(monkeypatch, dirname)
    assert hydra_app.sweep_name() == name


def test_sweep_over_paths_that_were_cleaned_alike_has_a_directory_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of data_dir=a/b,a-b used to be refused, or to continue the first one."""
    from omegaconf import OmegaConf

    monkeypatch.chdir(tmp_path)
    names = []
    for value in ("a-b", "a/b"):
        sweep(monkeypatch, f"student_config.data_dir={value}")
        cfg = OmegaConf.create({"task": "mt30", "seed": 1, "exp_name": None, "data_dir": value})
        names.append(str(hydra_app.composed(cfg)["exp_name"]))
        directory = Config(exp_name=names[-1], seed=1, task="mt30").run_dir
        directory.mkdir(parents=True)
        (directory / "run.json").write_text(json.dumps({"data_dir": value}))
    assert names[0] == "data_dir_a-b"
    assert re.fullmatch(r"data_dir_a_b-[0-9a-f]{8}", names[1])


def test_sweep_over_paths_that_an_older_version_began_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omegaconf import OmegaConf

    monkeypatch.chdir(tmp_path)
    sweep(monkeypatch, "student_config.data_dir=a/b")
    directory = tmp_path / "logs" / "mt30" / "1" / "data_dir_a-b"
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps({"data_dir": str(tmp_path / "a" / "b")}))
    cfg = OmegaConf.create({"task": "mt30", "seed": 1, "exp_name": None, "data_dir": "a/b"})
    assert hydra_app.composed(cfg)["exp_name"] == "data_dir_a-b"


def test_sweep_names_of_other_values_are_safe_and_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    """18 task names used to make a directory name that is too long; lists that clean alike must stay distinct."""
    tasks = [f"walker-{number}-walk-backwards" for number in range(18)]
    lists = [tasks, tasks[:-1], ["a-b"], ["a", "b"], ["a/b"]]
    names = set()
    for values in lists:
        sweep(monkeypatch, f"student_config.tasks=[{','.join(values)}]")
        names.add(hydra_app.sweep_name())
    assert len(names) == len(lists)
    assert all(ALLOWED.fullmatch(str(name)) for name in names)
    assert all(Config(exp_name=name).run_dir.name == name for name in names), "they are changed once"


def test_sweep_that_an_older_version_began_keeps_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    monkeypatch.chdir(tmp_path)
    sweep(monkeypatch, "student_config.tasks=[a,b]")
    cfg = OmegaConf.create({"task": "mt30", "seed": 1, "exp_name": None})
    assert str(hydra_app.composed(cfg)["exp_name"]).startswith("tasks__a_b_-")
    (tmp_path / "logs/mt30/1/tasks_-a-b-").mkdir(parents=True)
    (tmp_path / "logs/mt30/1/tasks_-a-b-/run.json").write_text("{}")
    assert hydra_app.composed(cfg)["exp_name"] == "tasks_-a-b-"


def test_artifact_of_any_name_is_one_that_wandb_takes(tmp_path: Path) -> None:
    """Checkpoints of a run named lr=1e-3, or of a user's own task, used not to be uploaded."""
    from wandb import Artifact

    made: list[Any] = []
    run = WandbRun(lambda line: None)
    server = SimpleNamespace(log_artifact=lambda artifact, aliases: made.append(artifact.name))
    run._run, run._wandb = object(), SimpleNamespace(Artifact=Artifact)
    run._sender = Sender("Weights & Biases", server, print)
    (tmp_path / "model.pt").write_bytes(b"x")
    for name in ("mt30-lr=1e-3", "my_tasks:Mine-v0-my run", f"mt30-{'x' * 300}"):
        run.artifact(tmp_path / "model.pt", name, "model", ())
    assert run._sender.finish(lambda server: None, 60)
    assert len(set(made)) == 3
    assert all(len(name) <= LONGEST for name in made)


def test_video_of_a_task_with_a_module_has_no_colon() -> None:
    assert re.fullmatch(r"my_tasks_Mine-v0--[0-9a-f]{8}-200\.mp4", video_name("my_tasks:Mine-v0", 200))
    assert video_name("walker-walk", 200) == "walker-walk-200.mp4"
