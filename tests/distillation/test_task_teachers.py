"""Teachers of single tasks: which rows they teach, what other rows get, and which teachers are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, TaskTeacher, parse_cfg
from tdmpc2.distillation.outputs import teacher_outputs
from tdmpc2.distillation.targets import TARGETS, Constants, StudentOutputs, StudentPolicy, TeacherOutputs
from tdmpc2.distillation.teachers import TaskTeachers
from tdmpc2.nn.math import bin_centres
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tests.helpers.agents import make_teacher, random_batch
from tests.helpers.distillation import LIVE, make_expert, make_student, same_weights
from tests.helpers.fake import updates_as_on_a_gpu
from tests.helpers.online import config
from tests.helpers.runs import TASKS, rows

B, H, K, A = 5, 3, 101, 4
TAUGHT = tuple(name for name in LIVE if TARGETS[name].needs != "next_latent")
#: Of one row each; what ``ranking`` compares is of one slice in eight.
of_rows = pytest.mark.parametrize("target", [name for name in TAUGHT if name != "ranking"])


def alone(task: str, **keys: Any) -> TDMPC2:
    """Make a teacher of one task that has the task's own sizes."""
    widths = {"model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 3}
    return make_expert(parse_cfg({**widths, "task": task, "device": "cpu", **keys}))


def part(outputs: Any, row: int) -> Any:
    """Pick one row of outputs; the batch axis is the one of size B."""
    picked = {}
    for name, value in outputs._asdict().items():
        if isinstance(value, tuple):
            picked[name] = tuple(v[row : row + 1] for v in value)
        elif value is not None:
            axis = value.shape.index(B)
            picked[name] = value.narrow(axis, row, 1)
    return type(outputs)(**picked)


@of_rows
def test_masked_loss_is_the_sum_over_taught_rows_divided_by_all(target: str) -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    student: Any = StudentOutputs(normal(H + 1, B, 8), normal(H, B, K), normal(2, H, B, K))
    if TARGETS[target].trains == "policy":
        student = StudentPolicy(normal(B, A), normal(B, A))
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]).unsqueeze(-1)
    teacher = TeacherOutputs(
        normal(H, B, 1), normal(B, K), normal(H, B, 1), None, (normal(B, A), normal(B, A)), mask=mask
    )
    constants = Constants(0.5 ** torch.arange(H), bin_centres(K, -10.0, 10.0), 2.0, 8)
    loss = TARGETS[target].loss
    of_each = [float(loss(part(student, row), part(teacher, row), constants)) for row in range(B)]
    assert float(loss(student, teacher, constants)) == pytest.approx(sum(of_each) / B, rel=1e-5)
    taught = [float(loss(part(student, r), part(teacher._replace(mask=None), r), constants)) for r in (0, 3, 4)]
    assert sum(of_each) == pytest.approx(sum(taught), rel=1e-5)
    everyone = teacher._replace(mask=torch.ones(B, 1))
    assert torch.equal(loss(student, everyone, constants), loss(student, teacher._replace(mask=None), constants))


def test_one_file_for_all_tasks_is_bit_for_bit_one_teacher(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(distillation_targets=TAUGHT)
    expert = make_expert(cfg)
    one, many = make_student(cfg, expert), make_student(cfg, dict.fromkeys(cfg.task_names, expert))  # type: ignore[arg-type]
    for step in range(3):
        batch = random_batch(cfg, step)
        first, second = one.update(batch), many.update(batch)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert same_weights(one, many)


def test_rows_of_a_task_without_a_teacher_are_not_distilled(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(distillation_targets=TAUGHT)
    taught = TDMPC2(cfg, {"pendulum-spin": alone("pendulum-spin")})
    plain = TDMPC2(cfg)
    batch = random_batch(cfg, 0)
    others = batch._replace(task=torch.full_like(batch.task, cfg.task_names.index("cartpole-balance")))
    stats = taught.update(others)
    assert all(float(stats[name]) == 0 for name in stats if name.startswith("distillation"))
    plain.update(others)
    assert same_weights(taught, plain)
    own = batch._replace(task=torch.full_like(batch.task, cfg.task_names.index("pendulum-spin")))
    assert float(taught.update(own)["distillation_loss"]) > 0


def test_outputs_computed_before_are_of_the_taught_rows_alone(tiny_cfg: Config) -> None:
    """Beside live teachers they had no mask: rows without a teacher were distilled towards 0."""
    cfg = tiny_cfg.replace(distillation_targets=("reward",))
    student, batch = TDMPC2(cfg, {cfg.task_names[1]: alone(cfg.task_names[1])}), random_batch(cfg, 0)
    live = student.distillation.teacher_outputs(batch, batch.task)
    assert live is not None
    again = student.distillation.teacher_outputs(batch._replace(teacher_reward=live.reward), batch.task)
    assert again is not None
    assert torch.equal(again.mask, live.mask)  # type: ignore[arg-type]


def test_teacher_that_is_scored_otherwise_may_teach(tiny_cfg: Config) -> None:
    """It was refused with two descriptions that were the same."""
    name = tiny_cfg.task_names[1]
    teacher = alone(name)
    teacher.cfg = teacher.cfg.replace(task_specs=(replace(teacher.cfg.task_specs[0], success_score=True),))
    teacher.model.cfg = teacher.cfg
    TDMPC2(tiny_cfg, {name: teacher})
    longer = teacher.cfg.replace(task_specs=(replace(teacher.cfg.task_specs[0], episode_length=7),))
    teacher.model.cfg = longer
    with pytest.raises(ValueError, match=r"actions and 7 steps, the student with .* actions and 500 steps"):
        TDMPC2(tiny_cfg, {name: teacher})


def test_mapping_without_a_teacher_is_refused(tiny_cfg: Config) -> None:
    """Of a pattern that fits no file came a run without distillation."""
    with pytest.raises(ValueError, match=r"teacher=\{\} names no teacher"):
        TDMPC2(tiny_cfg, {})


def test_outputs_are_those_of_each_teacher_in_its_own_sizes(tiny_cfg: Config) -> None:
    """Two teachers know one task, in sizes below the padding; one knows many; the fourth task has no teacher."""
    names = ("cup-catch", "pendulum-spin", "walker-walk", "cartpole-balance")
    models = {"cup-catch": alone("cup-catch").model, "pendulum-spin": alone("pendulum-spin", seed=2).model}
    many = make_expert(tiny_cfg).model
    teachers = TaskTeachers(tiny_cfg, {**models, "walker-walk": many}, torch.device("cpu"))
    ids = torch.tensor([tiny_cfg.task_names.index(name) for name in names])
    batch = random_batch(tiny_cfg, 4, len(names))
    found = teachers.outputs(TAUGHT, batch.obs, batch.action, ids)
    assert found.mask is not None
    assert found.mask.flatten().tolist() == [1, 1, 1, 0]
    for row, name in enumerate(names[:3]):
        model = models.get(name, many)
        obs, action = batch.obs[:, row, : model.cfg.obs_dim], batch.action[:, row, : model.cfg.action_dim]
        task = ids[row] if model is many else None
        own = teacher_outputs(model, TAUGHT, obs, action, task)
        for field in ("reward", "reward_logits", "value"):
            of_row = getattr(found, field)[..., row, :]
            assert torch.allclose(of_row, getattr(own, field).reshape(of_row.shape), atol=1e-5), (name, field)
        assert found.policy is not None
        assert own.policy is not None
        for padded, values in zip(found.policy, own.policy, strict=True):
            assert torch.allclose(padded[row, : values.shape[-1]], values, atol=1e-5)
            assert not padded[row, values.shape[-1] :].any()
    assert found.reward is not None
    assert not found.reward[:, 3].any()


def test_update_with_teachers_of_tasks_needs_no_synchronisation(tiny_cfg: Config) -> None:
    """On fake tensors, an update that reads a tensor on the host would fail."""
    cfg = tiny_cfg.replace(distillation_targets=TAUGHT)
    with updates_as_on_a_gpu():
        agent = TDMPC2(cfg, {"pendulum-spin": TDMPC2(cfg.replace(latent_dim=24))})
        assert all(value.shape == () for value in agent.update(random_batch(cfg, 0)).values())


@pytest.mark.parametrize(("task", "teacher", "keys", "message"), [
    ("walker-walk", "walker-run", {}, "the teacher of walker-walk knows walker-run, but not that task. Did you mean"),
    ("dog-run", "dog-run", {}, "'dog-run' is no task of the student"),
    ("walker-walk", "walker-walk", {"distillation_targets": ["next_state_pca"]}, "next_state_pca compares latents"),
    ("walker-walk", "walker-walk", {"distillation_targets": ["reward_logits"]}, r"\(101, -10.0, 10.0\) and those of "
     r"the teacher of walker-walk \(101, -5.0, 10.0\)"),
    ("cup-catch", "cup-catch", {}, r"knows it with 8 observed numbers \(obs=rgb\), 2 actions and 500 steps, the stud"),
])  # fmt: skip
def test_teacher_that_does_not_fit_its_task_is_refused(
    tiny_cfg: Config, task: str, teacher: str, keys: dict[str, Any], message: str
) -> None:
    theirs = {"obs": "rgb"} if task == "cup-catch" else {"vmin": -5}
    with pytest.raises(ValueError, match=message) as refused:
        TDMPC2(tiny_cfg.replace(**keys), {task: alone(teacher, **theirs)})
    assert "\n" not in str(refused.value)


# -- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    {"walker-walk": "a.pt", "cup-spin": "b c.pt"},
    [{"walker-walk": "a.pt"}, {"cup-spin": "b c.pt"}],
    ["walker-walk a.pt", "cup-spin b c.pt"],
    "cup-spin b c.pt, walker-walk a.pt",
    [{"task": "walker-walk", "checkpoint": "a.pt"}, {"task": "cup-spin", "checkpoint": "b c.pt"}],
])  # fmt: skip
def test_teachers_may_be_written_in_many_ways(value: Any) -> None:
    cfg = parse_cfg({"teachers": value})
    assert cfg.teachers == (TaskTeacher("cup-spin", "b c.pt"), TaskTeacher("walker-walk", "a.pt"))
    assert Config(**cfg.to_dict()).teachers == cfg.teachers


@pytest.mark.parametrize(("keys", "message"), [
    ({"teachers": {}}, "teachers has no entries"),
    ({"teachers": 3}, r"teachers=3 must be \{TASK: FILE, ...\}"),
    ({"teachers": ["walker-walk"]}, r"teachers=\{'walker-walk': ''\} must be"),
    ({"teachers": [3]}, r"teachers=\[3\] must be"),
    ({"teachers": {"walker-walk": ["a.pt"]}}, r"teachers=.* must be \{TASK: FILE"),
    ({"teachers": ["walker-walk a", "walker-walk b"]}, "'walker-walk' is there twice"),
    ({"teachers": {"cup-spin": "a"}, "tasks": ("walker-walk",)}, "the run learns walker-walk, and none of cup-spin"),
    ({"teachers": {"walker-wallk": "a"}}, r"'walker-wallk' is not a task of 'mt30'\. Did you mean 'walker-walk'"),
    ({"teachers": {"walker-walk": "a"}, "distillation_cache": "lazy"}, "lazy asks one teacher: with teachers use"),
])  # fmt: skip
def test_teachers_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cfg(keys)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_offline_run_with_teachers_of_tasks_is_distilled_and_knows_them_again(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run continues if its teachers' files were moved, and is refused with other teachers."""
    for name in TASKS:
        alone(name).save(tmp_path / f"{name}.pt")
    cfg = cfg.replace(steps=6, teachers={name: tmp_path / f"{name}.pt" for name in TASKS})
    train(cfg, None)
    assert f"teacher {tmp_path / 'cartpole-balance.pt'} of cartpole-balance, " in capsys.readouterr().out
    assert rows(cfg.run_dir / "train.csv")[0]["distillation_loss"] > 0
    (tmp_path / f"{TASKS[0]}.pt").rename(tmp_path / "moved.pt")
    moved = cfg.replace(teachers={TASKS[0]: tmp_path / "moved.pt", TASKS[1]: tmp_path / f"{TASKS[1]}.pt"}, steps=8)
    train(moved, None)
    for other in ({TASKS[0]: tmp_path / "moved.pt"}, None):
        with pytest.raises(ValueError, match=r"holds a run of another configuration \(teacher_sha256"):
            train(moved.replace(teachers=other, steps=10), None)


def test_online_run_with_a_teacher_of_its_task_equals_one_with_one_teacher(tmp_path: Path) -> None:
    make_teacher(config(tmp_path)).save(tmp_path / "teacher.pt")
    losses = []
    for name, keys, teacher in (
        ("one", {}, Config(checkpoint=str(tmp_path / "teacher.pt"))),
        ("each", {"teachers": {config(tmp_path).task: tmp_path / "teacher.pt"}}, None),
    ):
        cfg = config(tmp_path / name, steps=26, utd=0.3, distillation_targets=["reward", "value"], **keys)
        train_online(cfg, teacher)
        losses.append((cfg.run_dir / "train.csv").read_bytes())
    assert losses[0] == losses[1]
    assert b"distillation_value_loss" in losses[0]


def test_teachers_named_twice_or_missing_are_refused(cfg: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"teacher of {TASKS[0]}: teachers names .*gone\.pt, which does not exist"):
        train(cfg.replace(teachers={TASKS[0]: tmp_path / "gone.pt"}), None)
    alone(TASKS[0]).save(tmp_path / "a.pt")
    twice = cfg.replace(teachers={TASKS[0]: tmp_path / "a.pt"})
    with pytest.raises(ValueError, match=rf"teachers={TASKS[0]}: .* beside teacher_config\.checkpoint=.*leave out one"):
        train(twice, Config(checkpoint=str(tmp_path / "a.pt")))
    assert not cfg.run_dir.exists()


def test_dry_run_names_the_teachers(cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone(TASKS[0]).save(tmp_path / "a.pt")
    train(cfg.replace(teachers={TASKS[0]: tmp_path / "a.pt"}, dry_run=True), None)
    assert f"teacher     {tmp_path / 'a.pt'} of {TASKS[0]}, " in capsys.readouterr().out
