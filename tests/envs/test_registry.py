"""The table of environment families: recognition, refusals, scores."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest

from tdmpc2.envs import check_task, make_env, modules, registry, task_spec
from tdmpc2.envs.gymnasium_env import NAMED
from tdmpc2.envs.registry import FAMILIES, family_of, score_label, score_rule
from tdmpc2.tasks import TASKS, TaskSpec, lookup
from tests.helpers.toy_envs import STANDS

PENDULUM = TaskSpec("Pendulum-v1", 3, 1, 200)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("walker-walk", "DMControl"),
        ("cup_spin", "DMControl"),
        ("manipulator-bring_ball", "DMControl"),
        ("Pendulum-v1", "Gymnasium"),
        ("my_package:Mine-v0", "Gymnasium"),
        ("my_package:Mine", "Gymnasium"),
        ("mw-reach", "Meta-World"),
        ("pick-cube", "ManiSkill"),
        ("lift-cube", "ManiSkill"),
        ("turn-faucet", "ManiSkill"),
        ("myo-pen-twirl-hard", "MyoSuite"),
        ("walker\nwalk", "DMControl"),
        ("mw-reach\n", "Meta-World"),
        ("my_package:\nMine", "Gymnasium"),
        ("", "DMControl"),
    ],
)
def test_family_is_recognised_by_name(name: str, family: str) -> None:
    assert family_of(name).name == family


def test_registered_name_is_gymnasium_whatever_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "pick-cube", gymnasium.spec("Pendulum-v1"))
    assert family_of("pick-cube").name == "Gymnasium"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a module of a family one that is not installed."""

    def hide(module: str) -> None:
        monkeypatch.setattr(registry, "find_spec", lambda needed: None if needed == module else object())

    return hide


@pytest.mark.parametrize("package", ["there", "absent"])
@pytest.mark.parametrize("reach", [check_task, make_env, task_spec])
def test_task_that_its_family_has_no_more_names_the_successor(
    reach: Callable[[str], object], package: str, without: Callable[[str], None]
) -> None:
    """Such a task used to be refused as misspelt, and without ManiSkill as one that its installation would bring."""
    without("mani_skill" if package == "absent" else "none")
    with pytest.raises(ValueError, match="no task 'lift-cube' any more: pick-cube"):
        reach("lift-cube")


@pytest.mark.parametrize(
    ("name", "module", "commands"),
    [
        ("mw-reach", "metaworld", 'EXTRAS=metaworld` .*, or `pip install "tdmpc2-opt[metaworld]"` without'),
        ("myo-pose", "myosuite", "EXTRAS=envs` .*, or `pip install --no-deps MyoSuite==2.11.6 "),
        ("pick-cube", "mani_skill", 'EXTRAS=maniskill` .*, or `pip install "tdmpc2-opt[maniskill]"` without'),
        ("pick-ycb", "mani_skill", "EXTRAS=maniskill` "),
    ],
)
def test_task_of_a_family_that_is_not_installed_names_the_commands(
    name: str, module: str, commands: str, without: Callable[[str], None]
) -> None:
    without(module)
    said = f"Task '{name}' needs .*, which is not installed: run `make setup {commands}".replace("[", r"\[")
    with pytest.raises(ValueError, match=said):
        check_task(name)
    if name in TASKS:
        assert task_spec(name) == TASKS[name]  # known without it


@pytest.mark.parametrize(("name", "module"), [("mw-reech", "metaworld"), ("ms-pick-cub", "mani_skill")])
def test_misspelt_task_of_a_family_that_is_not_installed_gets_a_hint(
    name: str, module: str, without: Callable[[str], None]
) -> None:
    """The message used to advise to install a package that does not have the task either."""
    without(module)
    with pytest.raises(ValueError, match=f"Unknown task '{name}'.* Did you mean '(mw-reach|ms-pick-cube)'"):
        make_env(name)


def test_offered_family_that_needs_its_package_to_resolve_says_what_is_not_installed() -> None:
    row = registry.Family(
        "Toys", "toy-.*", make="toys:make", spec="toys:spec", resolve="no_such_toys:resolve", needs="no_such_toys"
    )
    with pytest.raises(ValueError, match=r"needs Toys, .* install the package that brings the module no_such_toys"):
        row.check("toy-stand")


@pytest.mark.parametrize("named_by", ["Python", "Gymnasium"])
def test_gymnasium_task_without_box2d_names_the_commands(named_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium's own message names a package of another name than the one that works here."""

    def make(*_: object, **__: object) -> None:
        try:
            raise ModuleNotFoundError("No module named 'Box2D'", name="Box2D")
        except ModuleNotFoundError as error:
            if named_by == "Python":
                raise
            raise gymnasium.error.DependencyNotInstalled("run `pip install swig`") from error

    monkeypatch.setattr(gymnasium, "make", make)
    said = r"Task 'bipedal-walker' needs Box2D, .*EXTRAS=box2d` .* `pip install \"tdmpc2-opt\[box2d\]\"`"
    with pytest.raises(ModuleNotFoundError, match=said):
        make_env("bipedal-walker")


def test_task_of_gymnasium_robotics_without_it_names_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(modules, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match=r"EXTRAS=robotics` .* `pip install \"tdmpc2-opt\[robotics\]\"`"):
        make_env("gymnasium_robotics:FetchReach-v4")


@pytest.mark.parametrize(("name", "near"), [("mw-reech", "mw-reach"), ("myo-poze", "myo-pose")])
def test_misspelt_task_of_a_known_family_gets_a_hint(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{near}'"):
        task_spec(name)


def test_new_family_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = registry.Family(
        "Toys",
        "toy-.*",
        make=f"{__name__}:_make_toy",
        spec=f"{__name__}:_toy_spec",
        score="success",
        tells_success=True,
    )
    monkeypatch.setattr(registry, "FAMILIES", (row, *FAMILIES))
    check_task("toy-stand")
    assert task_spec("toy-stand").episode_length == 7
    assert make_env("toy-stand", seed=4).reset()[0].shape == (4,)
    assert score_rule(task_spec("toy-stand")).score(np.ones(1), np.ones(1)) == [100]


def _make_toy(name: str, seed: int | None, render_mode: str | None) -> gymnasium.Env:
    return make_env(STANDS, seed, render_mode=render_mode)


def _toy_spec(name: str) -> TaskSpec:
    return TaskSpec(name, 4, 2, 7)


@pytest.mark.parametrize(
    ("spec", "score", "label"),
    [
        (lookup("walker-walk"), 50.0, "normalized score"),
        (lookup("mw-reach"), 25.0, "normalized score"),
        (PENDULUM, 500.0, "return"),
    ],
)
def test_score_is_by_the_rule_of_the_family(spec: TaskSpec, score: float, label: str) -> None:
    """The return of a user's environment used to be divided by ten, as if it were a task of DMControl."""
    assert score_rule(spec).score(np.array([500.0]), np.array([0.25])) == [score]
    assert score_rule(spec).label == label


def test_label_of_tasks_is_that_of_their_scale_if_they_have_one() -> None:
    """The mean of normalised scores and returns was called return."""
    assert score_label([lookup("walker-walk"), lookup("mw-reach")]) == "normalized score"
    assert score_label([PENDULUM, lookup("mujoco-walker")]) == "return"
    assert score_label([lookup("walker-walk"), PENDULUM]) == registry.MIXED


def test_table_agrees_with_the_success_scores_of_task_files() -> None:
    of_one_kind = [name for name in TASKS if family_of(name).name != "ManiSkill"]  # ManiSkill has both kinds
    assert {name for name in of_one_kind if TASKS[name].success_score} == {
        name for name in of_one_kind if family_of(name).score == "success"
    }


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_gymnasium_task_lasts_as_long_as_the_table_says(name: str) -> None:
    """Gymnasium's LunarLander-v3 has 1000 steps; the task of TD-MPC2 has 500."""
    if name in ("bipedal-walker", "lunarlander-continuous"):
        pytest.importorskip("Box2D", reason="Box2D is not installed: make setup EXTRAS=envs")
    env = make_env(name)
    assert env.spec is not None
    assert env.spec.max_episode_steps == TASKS[name].episode_length
