"""Task sets of users: YAML files, and tables and families from installed packages."""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2 import load_agent, make_env, parse_cfg
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data import write_episodes
from tdmpc2.envs import plugins, task_spec
from tdmpc2.envs.checked import CheckedEnv
from tdmpc2.envs.multitask import MultiTaskEnv
from tdmpc2.envs.registry import family_of, score_rule
from tdmpc2.play.actors import random_actor
from tdmpc2.play.rollout import Job, play
from tdmpc2.training.offline import train as train_offline
from tdmpc2.training.online import train_online
from tests.helpers.online import SMALL
from tests.helpers.reference import REPO
from tests.helpers.toy_envs import STANDS, ToyEnv

PACKAGE = """
import numpy as np
from tdmpc2.envs.registry import Family, build_env
from tdmpc2.tasks import TaskSpec

def make(name, seed, render_mode):
    return build_env("tests.helpers.toy_envs:Stands-v0", seed, render_mode)

def spec(name):
    return TaskSpec(name, 4, 2, 7)

balls = Family("Balls", r"ball-.*", make=f"{__name__}:make", spec=f"{__name__}:spec", score="return", renewable=True)
sets = {"two-balls": ["ball-roll", "ball-jump"], "mixed": ["ball-roll", "pendulum-spin"]}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put a package into this environment as pip would, with its entry points."""

    def add(name: str, source: str, **points: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        (info := tmp_path / f"{name}-1.0.dist-info").mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {name}:{attribute}" for point, attribute in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[tdmpc2.tasks]", *lines, ""]))

    monkeypatch.syspath_prepend(tmp_path)
    plugins.offers.cache_clear()
    yield add
    plugins.offers.cache_clear()
    for name in ("balls", "target_tasks"):
        sys.modules.pop(name, None)


@pytest.fixture
def set_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_set.yaml"
    path.write_text(f"name: arms\ntasks: [pendulum-spin, '{STANDS}']\n")
    return path


def test_task_set_file_is_a_set_of_many_tasks(set_file: Path) -> None:
    cfg = parse_cfg({"task": str(set_file), "model_size": 1})
    assert (cfg.task, cfg.task_names, cfg.multitask) == ("arms", ("pendulum-spin", STANDS), True)
    assert (cfg.obs_dim, cfg.action_dim, cfg.task_dim) == (4, 2, 96)
    assert Config(**cfg.to_dict()) == cfg


def test_task_set_file_without_a_name_has_that_of_the_file(tmp_path: Path) -> None:
    (path := tmp_path / "two.yml").write_text("tasks: [pendulum-spin, cup-catch]")
    assert parse_cfg({"task": str(path)}).task == "two"


def test_task_set_file_makes_an_environment_of_all_its_tasks(set_file: Path) -> None:
    env = make_env(str(set_file), seed=3)
    assert isinstance(env, MultiTaskEnv)
    obs, info = env.reset(options={"task": STANDS})
    assert (obs.shape, info["task_id"]) == ((4,), 1)


def test_task_set_file_learns_online_and_its_model_knows_its_tasks(tmp_path: Path) -> None:
    """The model plays its tasks after the file of the task set was deleted."""
    (path := tmp_path / "toys.yaml").write_text(f"tasks: ['{STANDS}', 'tests.helpers.toy_envs:Point-v0']")
    keys = {**SMALL, "task": str(path), "mode": "online", "task_dim": 8, "work_dir": str(tmp_path / "run")}
    model = train_online(parse_cfg(keys), None)
    path.unlink()
    agent = load_agent(model)
    assert agent.cfg.task_names == (STANDS, "tests.helpers.toy_envs:Point-v0")
    assert np.isfinite(agent.act(np.zeros(agent.cfg.obs_dim, np.float32), t0=True, task=STANDS)).all()


def test_task_set_file_may_be_named_beside_a_model_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the path was compared with the name of the set, so that no command could play the whole set."""
    (path := tmp_path / "toys.yaml").write_text(f"tasks: ['{STANDS}', 'tests.helpers.toy_envs:Point-v0']")
    (other := tmp_path / "others.yaml").write_text(f"name: toys\ntasks: ['{STANDS}', pendulum-spin]")
    cfg = parse_cfg({**SMALL, "task": str(path), "mode": "online", "task_dim": 8})
    TDMPC2(cfg).save(tmp_path / "x.pt")
    named: list[str] = []
    monkeypatch.setattr("tdmpc2.loading.import_module_of", named.append)
    assert load_agent(tmp_path / "x.pt", task=str(path)).cfg.task_names == cfg.task_names
    assert named[:2] == list(cfg.task_names), "the modules that the user has named"
    named.clear()
    assert load_agent(tmp_path / "x.pt", tasks=[STANDS]).cfg.task_ids == (0,)
    assert named == [STANDS]
    with pytest.raises(ValueError, match=r"is the task set 'toys' \(.*pendulum-spin\), but .* was trained on 'toys'"):
        load_agent(tmp_path / "x.pt", task=str(other))


@pytest.fixture
def padded_file(tmp_path: Path) -> Path:
    (path := tmp_path / "wide.yaml").write_text(f"tasks: [pendulum-spin, '{STANDS}']\npadding: {{obs: 7, action: 3}}\n")
    return path


def test_task_set_file_pads_environments_and_models_to_its_sizes(padded_file: Path) -> None:
    cfg = parse_cfg({"task": str(padded_file), "model_size": 1})
    assert (cfg.obs_dim, cfg.action_dim) == (7, 3)
    assert Config(**cfg.to_dict()) == cfg
    env = make_env(str(padded_file), seed=3)
    obs, _ = env.reset(options={"task": STANDS})
    assert (obs.shape, obs[4:].tolist(), env.action_space.shape) == ((7,), [0.0] * 3, (3,))


def test_padded_task_set_is_kept_by_data_and_checkpoints(padded_file: Path, tmp_path: Path) -> None:
    """Data and checkpoints keep the padding of a task set whose file was deleted."""
    rng = np.random.default_rng(0)
    for task, obs_dim, action_dim in (("pendulum-spin", 3, 1), (STANDS, 4, 2)):
        steps = task_spec(task).episode_length
        episode = rng.normal(size=(steps + 1, obs_dim)), rng.uniform(-1, 1, (steps, action_dim)), rng.random(steps)
        write_episodes(tmp_path / "data", task, [episode], task_set=str(padded_file))
    keys = {key: value for key, value in SMALL.items() if key != "seed_steps"}
    cfg = parse_cfg({**keys, "task": str(padded_file), "task_dim": 8, "steps": 2, "data_dir": str(tmp_path / "data"),
                     "work_dir": str(tmp_path / "run")})  # fmt: skip
    model = train_offline(cfg, None)
    padded_file.unlink()
    agent = load_agent(model)
    assert (agent.cfg.obs_dim, agent.cfg.action_dim) == (7, 3)
    assert agent.act(np.zeros(7, np.float32), t0=True, task=STANDS).shape == (3,)


def test_task_set_file_learns_from_stored_episodes(set_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for task, obs_dim, action_dim in (("pendulum-spin", 3, 1), (STANDS, 4, 2)):
        steps = task_spec(task).episode_length
        episode = rng.normal(size=(steps + 1, obs_dim)), rng.uniform(-1, 1, (steps, action_dim)), rng.random(steps)
        write_episodes(tmp_path / "data", task, [episode], task_set=str(set_file))
    keys = {key: value for key, value in SMALL.items() if key != "seed_steps"}
    cfg = parse_cfg({**keys, "task": str(set_file), "task_dim": 8, "steps": 3, "data_dir": str(tmp_path / "data"),
                     "work_dir": str(tmp_path / "run")})  # fmt: skip
    assert load_agent(train_offline(cfg, None)).cfg.task == "arms"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: walker-walk", "describes no task set"),
        ("[walker-walk, walker-run]", "describes no task set"),
        ("tasks: [walker-walk]", "has 1 tasks"),
        ("tasks: [walker-walk, walker-walk]", "names the task 'walker-walk' twice"),
        ("tasks: [walker-walk, 3]", "3 is no name of a task"),
        ("tasks: [walker-walk, mt30]", "names 'mt30', a task set"),
        ("tasks: [walker-walk, other.yaml]", "names 'other.yaml', a task set"),
        ("tasks: [walker-walk, walker-wolk]", "Did you mean 'walker-walk'"),
        ("{name: mt30, tasks: [walker-walk, cup-catch]}", "name=mt30 is a task set or task already"),
        ("{name: ../up, tasks: [walker-walk, cup-catch]}", "must be up to 100 letters"),
        ("{pad: 3, tasks: [walker-walk, cup-catch]}", "unknown entry 'pad'; a task set has a name, tasks and padding"),
        ("{padding: 3, tasks: [walker-walk, cup-catch]}", r"padding=3 must be two sizes, as in 'padding: {obs: 39, "),
        ("{padding: {obs: 39}, tasks: [walker-walk, cup-catch]}", "must be two sizes"),
        ("{padding: {obs: 39, action: true}, tasks: [walker-walk, cup-catch]}", "must be two sizes"),
        ("{padding: {obs: 39, action: 0}, tasks: [walker-walk, cup-catch]}", "must be two sizes"),
        (
            "{padding: {obs: 23, action: 6}, tasks: [walker-walk, cup-catch]}",
            "obs: 23, and its task 'walker-walk' has 24",
        ),
        (
            "{padding: {obs: 24, action: 5}, tasks: [cup-catch, walker-walk]}",
            "action: 5, and its task 'walker-walk'",
        ),
        ("tasks: [walker-walk", "is no YAML file"),
        ("!!python/object/apply:os.system ['true']", "is no YAML file"),
    ],
)
def test_task_set_file_that_is_wrong_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (path := tmp_path / "set.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        parse_cfg({"task": str(path)})


def test_task_set_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.yaml cannot be read: No such file"):
        parse_cfg({"task": str(tmp_path / "none.yaml")})


def test_task_set_file_that_a_checkpoint_names_is_not_opened(set_file: Path) -> None:
    """The task in a checkpoint is only a name, and never makes the program read a file of the user's."""
    with pytest.raises(ValueError, match="Unknown task"):
        parse_cfg({"task": str(set_file)}, "model.pt", from_file=True)


def test_package_offers_a_family(install: Callable[..., None]) -> None:
    install("balls", PACKAGE, family="balls")
    assert family_of("ball-roll").name == "Balls"
    assert task_spec("ball-roll").episode_length == 7
    assert make_env("ball-roll", seed=1).reset()[0].shape == (4,)


class TellsIsSuccess(ToyEnv):
    """Tells its success by the other name, and none when it is reset."""

    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"is_success": True})


def test_family_that_tells_no_success_has_none(install: Callable[..., None]) -> None:
    """A family may build environments that tell no success, or by the other name; they used to end in a KeyError."""
    install(
        "balls", PACKAGE.replace("build_env(", "_bare(") + "\nimport gymnasium\n"
        "_bare = lambda name, seed, render_mode: gymnasium.make(name)\n", family="balls",
    )  # fmt: skip
    cfg = parse_cfg({"task": "ball-roll", "device": "cpu"})
    (episode,) = play(cfg, random_actor(cfg, 0), [Job(0, 1)])
    assert (episode.steps, episode.success) == (7, 0.0)
    env = CheckedEnv(TellsIsSuccess(), "x", 1)  # type: ignore[arg-type]
    assert env.reset()[1] == {"success": 0.0}
    assert env.step(np.zeros(2))[4] == {"is_success": True, "success": 1.0}


def test_package_offers_task_sets(install: Callable[..., None]) -> None:
    install("balls", PACKAGE, family="balls", sets="sets")
    assert parse_cfg({"task": "mixed"}).task_names == ("ball-roll", "pendulum-spin")
    assert make_env("two-balls", seed=1).reset(options={"task": "ball-jump"})[1]["task_id"] == 1


def test_package_cannot_take_a_task_of_this_one(install: Callable[..., None]) -> None:
    install("balls", PACKAGE.replace('r"ball-.*"', 'r".*"'), family="balls")
    names = {name: family_of(name).name for name in ("walker-walk", "mw-reach", "Pendulum-v1", "ball-roll")}
    assert list(names.values()) == ["DMControl", "Meta-World", "Gymnasium", "Balls"]


def test_package_that_cannot_be_loaded_costs_a_warning(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install("broken", "raise RuntimeError('no license')", family="balls")
    install("balls", PACKAGE, family="balls")
    assert family_of("ball-roll").name == "Balls"
    assert [record.message for record in caplog.records if record.name.startswith("tdmpc2")] == [
        "The tasks 'family' of the package broken are left out: RuntimeError: no license"
    ]


@pytest.mark.parametrize("line", ["sets = {'two': 'walker-walk'}", "sets = {'two': 3}", "sets = 3"])
def test_package_whose_sets_are_wrong_spoils_no_other_task(install: Callable[..., None], line: str) -> None:
    install("balls", line, sets="sets")
    assert parse_cfg({"task": "Pendulum-v1"}).task == "Pendulum-v1"


def test_package_of_the_examples_plays_all_its_tasks(install: Callable[..., None]) -> None:
    """The entry points in the example's pyproject.toml exist in its module, and all its tasks are played."""
    folder = REPO / "examples" / "own_family"
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"][plugins.GROUP]
    source = (folder / "target_tasks.py").read_text()
    install("target_tasks", source, **{name: value.partition(":")[2] for name, value in points.items()})
    cfg = parse_cfg({"task": "targets"})
    env = make_env(cfg, seed=2)
    for name in cfg.task_names:
        env.reset(options={"task": name})
        outcomes = [env.step(np.ones(3, np.float32)) for _ in range(50)]
        assert [truncated for _, _, _, truncated, _ in outcomes] == [False] * 49 + [True]
        assert score_rule(task_spec(name)).label == "normalized score"


@pytest.mark.parametrize("key", ["padding", "name", "tasks"])
def test_task_set_file_of_aliases_is_refused_without_unfolding_them(tmp_path: Path, key: str) -> None:
    """A few lines of YAML became a message of a gigabyte before it was cut to 80 letters."""
    letters = "abcdefghij"
    lists = [f"&{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise(letters)]
    bomb = f"[[&a [x], {', '.join(lists)}]]"
    lines = {"tasks": "[walker-walk, cup-catch]", key: bomb}
    (path := tmp_path / "bomb.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"bomb\.yaml.*too large to show"):
        parse_cfg({"task": str(path)})
    assert time.monotonic() - began < 5
