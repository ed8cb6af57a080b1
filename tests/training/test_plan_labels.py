"""Plans for stored observations: which teacher makes them, how, and what happens if that is interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.agent import TDMPC2
from tdmpc2.commands.targets import main
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.store.same_episodes import fingerprint
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, open_targets
from tdmpc2.data.store.verify_columns import verify_targets
from tdmpc2.data.tools.convert import to_store
from tdmpc2.tasks import TaskSpec
from tdmpc2.training import plan_labels as module
from tdmpc2.training.offline import train
from tdmpc2.training.plan_labels import compute_plans, episode_seed, row_noise, settings
from tdmpc2.training.teacher_cache import compute_all
from tests.helpers.data import make_store
from tests.helpers.data_command import flip
from tests.helpers.distillation import make_expert
from tests.helpers.runs import TINY, rows
from tests.helpers.teacher_cache import SHA256, content

LENGTH = 12
SPECS = (TaskSpec("three-two", 3, 2, LENGTH), TaskSpec("four-one", 4, 1, LENGTH))
SMALL: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_q": 3, "num_samples": 16,
    "num_elites": 4, "num_pi_trajs": 4, "iterations": 2, "device": "cpu", "compile": "false",
}  # fmt: skip


def two_tasks(**keys: Any) -> Config:
    return Config(task="two", task_specs=SPECS, **{**SMALL, **keys})


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return make_store(tmp_path / "store", two_tasks(), episodes=4)


def empty(store: EpisodeStore, sha256: str = SHA256, **made: Any) -> TeacherTargets:
    return open_targets(store, sha256, "teacher.pt", "plan", made or {"num_samples": 16})


def test_label_is_the_mean_of_a_cold_plan_for_the_observation_before(store: EpisodeStore) -> None:
    """Each row is planned for alone, with its own random numbers and the Q heads of its episode."""
    teacher, column = make_expert(two_tasks()), empty(store)
    compute_plans(column, teacher, at_once=5)
    assert column.values.shape == (4, LENGTH + 1, 2)
    assert column.values[:, 0].isnan().all()
    obs, _, _ = store.meta.row_format.split(store.rows)
    for episode, row in ((0, 1), (1, 5), (2, 6), (3, LENGTH)):
        task, seed = store.task[episode : episode + 1], episode_seed(fingerprint(store, episode))
        noise = row_noise(teacher.cfg, [seed + row - 1], seed, teacher.device)
        z = teacher.model.encode(obs[episode, row - 1][None].float(), task)
        cold = torch.zeros(1, teacher.cfg.horizon, 2)
        plan = planner.plan(teacher.model, z, teacher.model.context(task), cold, noise, eval_mode=True)
        assert_close(column.values[episode, row], plan.mean[0, 0], rtol=0, atol=1e-6)
    assert not column.values[1, 1:, 1].any()  # the second task has one action
    assert float(column.values[0, 1:].std()) > 0.05


def test_labels_of_single_task_teacher_are_made(tmp_path: Path) -> None:
    cfg = Config(task="three-two", task_specs=SPECS[:1], **SMALL)
    store = make_store(tmp_path / "one", cfg, episodes=2)
    column = empty(store)
    compute_plans(column, make_expert(cfg))
    assert column.complete()


def test_labels_of_cpu_kernels_are_those_of_the_plain_planner(store: EpisodeStore) -> None:
    plain, fast = empty(store), empty(store, "cd" * 32)
    compute_plans(plain, make_expert(two_tasks()))
    teacher = make_expert(two_tasks(compile="auto"))
    compute_plans(fast, teacher)
    if teacher.planner.kind != "kernels":
        pytest.skip("the CPU kernels are not here")
    close = (plain.values - fast.values)[:, 1:].abs() < 1e-4
    assert close.float().mean() > 0.95  # rounding decides between equally good sequences


def test_labels_interrupted_anywhere_are_the_same_in_the_end(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store.path, tmp_path / "undisturbed")
    undisturbed = empty(EpisodeStore.open(tmp_path / "undisturbed"))
    compute_plans(undisturbed, make_expert(two_tasks()), at_once=5)
    column, original, calls = empty(store), module.planned_actions, []
    seeds = [episode_seed(fingerprint(store, episode)) for episode in range(4)]

    def interrupted(*args: Any) -> torch.Tensor:
        calls.append(seeds.index(args[4]))
        if len(calls) % 5 == 0:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "planned_actions", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compute_plans(column, make_expert(two_tasks()), at_once=5)
    assert calls == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]  # three groups an episode; the interrupted one is repeated
    monkeypatch.undo()
    column.values[0, 3] = 7.0  # as damage of the disk
    compute_plans(column, make_expert(two_tasks()), at_once=5)
    assert content(column) == content(undisturbed)
    assert verify_targets(store) == []


def test_labels_of_a_compiled_planner_are_made_for_groups_of_one_size(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last group of an episode is filled up, because another number of plans would be compiled separately."""
    plain, padded, sizes = empty(store), empty(store, "cd" * 32), []
    compute_plans(plain, make_expert(two_tasks()), at_once=5)
    original = module.planned_actions
    monkeypatch.setattr(FastPlanner, "fixed_size", True)
    monkeypatch.setattr(module, "planned_actions", lambda *args: sizes.append(len(args[1])) or original(*args))
    compute_plans(padded, make_expert(two_tasks()), at_once=5)
    assert sizes == [5] * 12
    assert_close(padded.values, plain.values, rtol=0, atol=1e-5, equal_nan=True)


@pytest.fixture
def teachers() -> dict[str, TDMPC2]:
    """Make a teacher of the first task only, in the task's own sizes."""
    return {"three-two": make_expert(Config(task="three-two", task_specs=SPECS[:1], **SMALL))}


def test_cache_of_teachers_is_each_teachers_own_and_zero_without_one(
    store: EpisodeStore, teachers: dict[str, TDMPC2]
) -> None:
    columns = {name: open_targets(store, SHA256, "teachers", name) for name in ("reward", "value", "policy")}
    columns["plan"] = empty(store)
    compute_all([column for name, column in columns.items() if name != "plan"], teachers)
    compute_plans(columns["plan"], teachers)
    assert all(column.complete() for column in columns.values())
    untaught = store.task == 1
    for column in columns.values():
        assert not column.values[untaught, 1:].any()
        assert column.values[~untaught, 1:].any()
    assert verify_targets(store) == []
    model = teachers["three-two"].model
    obs, _, _ = store.meta.row_format.split(store.rows[2])
    z = model.encode(obs[6, :3].float())
    _, info = model.pi(z, None, torch.zeros(2))
    expected = torch.cat([info["presquash_mean"], info["log_std"]])
    assert_close(columns["policy"].values[2, 7], expected, rtol=1e-5, atol=1e-5)


def test_episodes_without_a_teacher_are_filled_together_and_once(
    tmp_path: Path, teachers: dict[str, TDMPC2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filling half a million episodes without a teacher one by one would take longer than the teachers."""
    store = make_store(tmp_path / "many", two_tasks(), episodes=30)
    column, filled, original = empty(store), [], TeacherTargets.put

    def put(self: TeacherTargets, index: torch.Tensor, numbers: torch.Tensor) -> None:
        if not numbers.any():
            filled.append(len(index))
        original(self, index, numbers)

    monkeypatch.setattr(TeacherTargets, "put", put)
    compute_plans(column, teachers, torch.arange(0, 20))
    compute_plans(column, teachers, torch.arange(30))
    untaught = store.task == 1
    assert filled == [int(untaught[:20].sum()), int(untaught[20:].sum())]
    assert not column.values[untaught, 1:].any()


def test_column_of_plans_goes_on_only_as_it_was_begun(store: EpisodeStore) -> None:
    """Plans of two budgets must not mix in a column, since they would be labels of two teachers."""
    made = settings(make_expert(two_tasks()), 16)
    assert made["num_samples"] == 16
    assert made["precision"] == "fp32"
    first = empty(store, **made)
    assert json.loads((first.path / "plan.json").read_text()) == made
    other = settings(make_expert(two_tasks(num_samples=32, iterations=1)), 16)
    with pytest.raises(ValueError, match=r"way \(iterations was 2 and is now 1; num_samples was 16 and is now 32"):
        empty(store, **other)
    for name in ("plan.npy", "plan.check.npy"):
        (first.path / name).unlink()
    again = empty(store, **other)
    assert json.loads((again.path / "plan.json").read_text()) == other
    (again.path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is damaged .*Delete the directory"):
        empty(store, **other)
    assert "plan.json is damaged" in "".join(verify_targets(store))
    (again.path / "plan.json").unlink()
    with pytest.raises(
        ValueError, match=r"plan\.json is missing.*Restore it, or delete plan\.npy and plan\.check\.npy"
    ):
        empty(store, **other)
    assert "plan.json is missing" in "".join(verify_targets(store))


def test_settings_list_by_task_what_teachers_differ_in() -> None:
    agents = {"a": make_expert(two_tasks()), "b": make_expert(two_tasks(iterations=3))}
    assert settings(agents, 4)["iterations"] == {"a": 2, "b": 3}
    assert settings(agents, 4)["horizon"] == 3
    assert find_keys_that_are_not_planning(settings(agents, 4)) == {"at_once", "precision", "random_numbers"}


def find_keys_that_are_not_planning(found: dict[str, Any]) -> set[str]:
    from tdmpc2.config import PLANNER_KEYS

    return set(found) - set(PLANNER_KEYS)


def test_plans_that_are_not_finite_are_refused(store: EpisodeStore) -> None:
    teacher, column = make_expert(two_tasks()), empty(store)
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"The teacher's plan is nan in episode 0, row 1 of .*store"):
        compute_plans(column, teacher)
    assert column.values.isnan().all()


# -- the command and the run ------------------------------------------------------------------------------------------


def short_data(data_dir: Path, tmp_path: Path) -> Path:
    """Copy the session's chunk files, since a store and a cache are made beside them."""
    return Path(shutil.copytree(data_dir, tmp_path / "data"))


def test_command_labels_and_training_imitates(
    cfg: Config, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four columns are made and used, on disk and in memory; the second of two tasks has no teacher."""
    data, task = short_data(data_dir, tmp_path), "pendulum-spin"
    widths = {key: TINY[key] for key in ("model_size", "enc_dim", "mlp_dim", "latent_dim")}
    make_expert(parse_cfg({**widths, "task": task, "device": "cpu"})).save(tmp_path / "teacher.pt")
    line = [str(data), f"teachers={{{task}: {tmp_path / 'teacher.pt'}}}", "columns=reward,value,policy,plan"]
    budget = ["num_samples=8", "iterations=1", "horizon=2", "precision=fp32"]
    main([*line, *budget, "--device", "cpu"])
    text = capsys.readouterr().out
    assert "Teacher's plans: done, 1,500 plans in" in text
    assert "is complete: reward, value, policy, plan" in text
    torch.set_num_threads(1)
    with pytest.raises(SystemExit):
        main([*line, "num_samples=16", *budget[1:], "--device", "cpu"])
    assert "num_samples was 8 and is now 16" in capsys.readouterr().err
    torch.set_num_threads(1)
    targets = ("reward", "value 0.1", "policy 0.1", "plan 1")
    losses = []
    for place in ("cpu", "disk"):
        run = cfg.replace(
            data_dir=str(data), teachers={task: tmp_path / "teacher.pt"}, distillation_cache="full", steps=10,
            distillation_targets=targets, data_device=place, work_dir=str(tmp_path / place),
        )  # fmt: skip
        train(run, None)
        losses.append(rows(run.run_dir / "train.csv"))
    assert losses[0] == losses[1]
    assert all(row["distillation_plan_loss"] > 0 for row in losses[0])
    [plans] = data.rglob("plan.json")
    made = json.loads(plans.read_text())
    plans.write_text(json.dumps(made | {"num_samples": 16}))  # as if they had been made anew with another budget
    with pytest.raises(
        ValueError, match=r"'plan' was made anew since the run began .num_samples was 8 and is now 16.:"
    ):
        train(run.replace(steps=12), None)
    plans.write_text(json.dumps(made))
    train(run.replace(steps=12), None)
    live = cfg.replace(
        data_dir=str(data), teachers={task: tmp_path / "teacher.pt"}, steps=10, distillation_targets=targets[:3]
    )
    train(live, None)
    first, asked = losses[0][0], rows(live.run_dir / "train.csv")[0]
    for name in ("distillation_loss", "distillation_value_loss", "distillation_policy_loss"):
        assert first[name] == pytest.approx(asked[name], rel=1e-3), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data"], "name the teacher's checkpoint, teacher=FILE, or teachers of single tasks"),
        (["data", "a.pt", "teachers={walker-walk: b.pt}"], "name the teacher's checkpoint, teacher=FILE, or"),
        (["data", "a.pt", "num_samples=8"], "num_samples=8 is a setting of plans, and columns=reward has none"),
        (["data", "a.pt", "precision=int8"], "precision=int8 is a setting of plans, and columns=reward has none"),
        (["data", "teachers={walker-walk: b.pt}", "task=cup-spin"], "task=cup-spin beside teachers"),
        (["data", "a.pt", "columns=plans"], "columns: 'plans' is not one of reward, value, policy, plan. Did you mean"),
    ],
)
def test_command_line_that_cannot_be_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    torch.set_num_threads(1)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_states_that_a_student_visits_are_labelled_as_the_page_says(
    cfg: Config, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/training.md collect by the policy, join the data, plan for new episodes, and imitate."""
    from tdmpc2.commands.collect import main as collect
    from tdmpc2.commands.data import main as data

    student, visited, both = tmp_path / "student.pt", tmp_path / "visited", tmp_path / "both"
    make_expert(cfg).save(student)
    names = ",".join(cfg.tasks or ())
    collect([f"checkpoint={student}", "mpc=false", "episodes_per_task=1", f"data_dir={visited}", f"tasks=[{names}]"])
    data(["convert", str(data_dir), str(visited), str(both)])
    labels = [str(student), "columns=reward,policy,plan", "num_samples=8", "iterations=1", "device=cpu"]
    main([str(visited), *labels])
    assert "Teacher's plans: done, 1,000 plans in" in capsys.readouterr().out
    main([str(both), *labels, f"known={visited}"])
    text = capsys.readouterr().out
    for name in ("reward", "policy", "plan"):
        assert f"{name} of 2 episodes is taken over from {visited}" in text
    assert text.count("Comparing with") == 1  # for all columns
    assert "Teacher's plans: done, 3,000 plans in" in text
    torch.set_num_threads(1)
    imitates = cfg.replace(
        data_dir=str(both), distillation_cache="full", distillation_targets=("reward", "policy", "plan 5"), steps=5
    )
    train(imitates, Config(checkpoint=str(student)))
    assert rows(imitates.run_dir / "train.csv")[0]["distillation_plan_loss"] > 0
    live = imitates.replace(distillation_targets=("plan 5", "ranking"), work_dir=str(tmp_path / "live"))
    train(live.replace(dry_run=True), Config(checkpoint=str(student)))
    assert "asked once, before and in every update" in capsys.readouterr().out
    train(live, Config(checkpoint=str(student)))
    first = rows(live.run_dir / "train.csv")[0]
    assert first["distillation_plan_loss"] > 0
    assert "distillation_ranking_loss" in first


def test_no_plan_is_made_for_a_damaged_row(store: EpisodeStore) -> None:
    """It used to be, and stayed, with a good check number, after the row was repaired."""
    column, good = empty(store), (store.path / "rows.npy").read_bytes()
    flip(store.path / "rows.npy", -300)
    with pytest.raises(ValueError, match=r"rows\.npy, episodes .*: checksum"):
        compute_plans(column, make_expert(two_tasks()))
    reward = open_targets(store, SHA256, "teacher.pt", "reward")
    with pytest.raises(ValueError, match=r"rows\.npy, episodes .*: checksum"):
        compute_all([reward], make_expert(two_tasks()))
    assert reward.missing().all()
    (store.path / "rows.npy").write_bytes(good)
    compute_plans(column, make_expert(two_tasks()))
    assert column.complete()


def test_all_damage_of_columns_is_listed_with_a_remedy_that_keeps_what_is_good(store: EpisodeStore) -> None:
    plans, reward = empty(store), open_targets(store, SHA256, "teacher.pt", "reward")
    compute_plans(plans, make_expert(two_tasks()))
    plans.values[0, 3, 0], plans.values[2, 5, 1] = 7.0, 7.0
    with reward.file.open("r+b") as file:
        file.truncate(reward.file.stat().st_size - 4)
    cut, wrong = verify_targets(store)
    assert "reward.npy and reward.check.npy there: what they held is computed again" in cut
    assert (
        "plan.npy holds 7.0 with another one's check number in episode 0, row 3, the first of 2 wrong numbers" in wrong
    )
    assert "The command that made it computes again what is wrong" in wrong
    compute_plans(plans, make_expert(two_tasks()))
    assert verify_targets(store) == [cut]


def test_known_store_of_files_that_have_grown_keeps_its_outputs(
    cfg: Config, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to be imported anew, which deleted what was to be copied."""
    teacher, mine, both = tmp_path / "teacher.pt", tmp_path / "mine", tmp_path / "both"
    make_expert(cfg).save(teacher)
    shutil.copytree(data_dir, mine, ignore=lambda *_: ["store"])
    labels = [str(teacher), "columns=reward", "device=cpu"]
    main([str(mine), *labels])
    first = sorted(mine.glob("chunk_*.pt"))[-1]
    shutil.copy(first, mine / f"chunk_{int(first.stem[6:]) + 1}.pt")
    to_store([str(mine)], both)
    capsys.readouterr()
    main([str(both), *labels, f"known={mine}"])
    out = capsys.readouterr().out
    assert "reward of 0 episodes" not in out
    assert "Replacing" not in out
    with pytest.raises(SystemExit):
        main([str(both), *labels, f"known={tmp_path}"])
    torch.set_num_threads(1)
    assert f"known: {tmp_path} holds no episode store" in capsys.readouterr().err
