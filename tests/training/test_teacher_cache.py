"""Cached teacher outputs give the same training as a live teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.batch import Batch
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import teacher_columns, verify_columns
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, open_targets
from tdmpc2.data.store.verify_columns import verify_targets
from tdmpc2.distillation import outputs
from tdmpc2.nn.math import decode
from tdmpc2.training.teacher_cache import LazyTargets, compute_all
from tests.helpers.agents import make_teacher
from tests.helpers.data import EPISODES, make_store
from tests.helpers.teacher_cache import SHA256, content, empty, one_by_one, open_columns

# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cached_reward_of_row_is_that_of_the_step_leading_to_it(tmp_path: Path, tiny_cfg: Config, dtype: str) -> None:
    store, teacher = make_store(tmp_path / "half", tiny_cfg, dtype=dtype), make_teacher(tiny_cfg)
    targets = empty(store)
    compute_all(targets, teacher, batch_rows=1000)
    values = np.load(targets.path / "reward.npy")
    assert values.shape == (EPISODES, 501)
    assert values.dtype == np.float32
    assert np.isnan(values[:, 0]).all()
    assert values[:, 1:].std() > 0.1
    for episode, row in ((0, 1), (3, 250), (6, 500)):
        assert values[episode, row] == pytest.approx(one_by_one(store, teacher, episode, row), abs=1e-6)
    batch = cached_sampler(store, targets).draw(0, 32, 3, seed=1)
    assert batch.teacher_reward is not None
    for t in range(3):
        live = outputs.teacher_columns(teacher.model, ("reward",), batch.obs[t], batch.action[t], batch.task)["reward"]
        assert_close(batch.teacher_reward[t], live, rtol=0, atol=1e-6)


def test_cached_reward_of_single_task_teacher_is_right(tmp_path: Path, tiny_cfg: Config) -> None:
    plain = {key: value for key, value in tiny_cfg.to_dict().items() if key not in ("task", "task_specs", "task_dim")}
    cfg = parse_cfg({**plain, "task": "cup-spin"})
    store, teacher = make_store(tmp_path / "single", cfg), make_teacher(cfg)
    lazy, full = empty(store), open_targets(store, "cd" * 32, "teacher.pt")
    compute_all(full, teacher)
    assert full.values[2, 9] == pytest.approx(one_by_one(store, teacher, 2, 9), abs=1e-6)
    sampler = SliceSampler(EpisodeDataset.map(store))
    rows = sampler.rows(0, 16, 3, seed=1)
    batch = LazyTargets(lazy, teacher, steps=3).fill(sampler.gather(rows), rows)
    assert_close(batch.teacher_reward.squeeze(-1), full.values.view(-1)[rows[1:]], rtol=0, atol=1e-6)  # type: ignore[union-attr]


def make_valuer(cfg: Config) -> TDMPC2:
    """Make a teacher whose values also depend on their inputs."""
    teacher = make_teacher(cfg)
    generator, model = torch.Generator().manual_seed(5), teacher.model
    with torch.no_grad():
        model._Qs.params[8].normal_(0, 0.5, generator=generator)
        model._Qs.params[9].copy_(-4 * (model.bins - 2).square())
    return teacher


def test_columns_of_any_width_are_looked_at_in_parts_of_one_size(
    store: EpisodeStore, tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checking a column takes many copies, so a column of twelve numbers a row is checked in smaller parts."""
    seen: list[int] = []
    original = teacher_columns.check_numbers
    monkeypatch.setattr(teacher_columns, "_BLOCK", 2 * 501 * 12)
    for module in (teacher_columns, verify_columns):
        monkeypatch.setattr(module, "check_numbers", lambda x: seen.append(x.numel()) or original(x))
    for name in ("reward", "policy"):
        (column,) = open_columns(store, name)
        assert column.missing().all()
        assert not column.complete()
        compute_all(column, make_teacher(tiny_cfg))
        assert column.complete()
        assert column.column().isfinite()[:, 1:].all()
        assert verify_targets(store) == []
        width = column.values[0, 0].numel()
        looked = [number for number in seen if number % (501 * width) == 0]
        assert max(looked) == min(2 * 12 // width, EPISODES) * 501 * width
        seen.clear()


def test_cached_values_have_their_own_column(
    store: EpisodeStore, tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_valuer(tiny_cfg)
    columns = open_columns(store, "reward", "value")
    asked: list[tuple[str, ...]] = []
    original = outputs.teacher_columns
    monkeypatch.setattr(
        "tdmpc2.training.teacher_cache.teacher_columns", lambda *args: asked.append(tuple(args[1])) or original(*args)
    )
    compute_all(columns, teacher, batch_rows=1000)
    assert asked == [("reward", "value")] * 4  # one pass for both
    names = [f"{name}{ending}" for name in ("reward", "value") for ending in (".check.npy", ".npy")]
    assert sorted(content(columns[0])) == ["meta.json", *names]
    for episode, row in ((0, 1), (3, 250), (6, 500)):
        obs, action, _ = store.meta.row_format.split(store.rows[episode])
        z, task = teacher.model.encode(obs[row - 1].float(), store.task[episode]), store.task[episode]
        heads = teacher.model.Q(z, action[row].float(), task, "all")
        value = decode(heads, teacher.model.bins).mean().item()
        assert float(columns[1].values[episode, row]) == pytest.approx(value, rel=1e-6)
        reward = one_by_one(store, teacher, episode, row)
        assert float(columns[0].values[episode, row]) == pytest.approx(reward, abs=1e-6)
    assert columns[1].values[:, 1:].std() > 0.1
    sampler = SliceSampler(EpisodeDataset.map(store))
    rows, alone = sampler.rows(0, 16, 3, seed=1), open_targets(store, "cd" * 32, "t", "value")
    filled = LazyTargets(alone, teacher, steps=3).fill(sampler.gather(rows), rows)
    assert filled.teacher_reward is None
    assert_close(filled.teacher_value.squeeze(-1), columns[1].values.view(-1)[rows[1:]], rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]


def test_cached_column_is_added_to_others(
    store: EpisodeStore, tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing column, complete or partial, is neither made nor computed again, in full or lazily."""
    teacher = make_valuer(tiny_cfg)
    (reward,) = open_columns(store, "reward")
    compute_all(reward, teacher, torch.tensor([0, 1, 4]), batch_rows=500)
    before = reward.file.read_bytes(), (reward.path / "meta.json").read_bytes()
    reward, value = open_columns(store, "reward", "value")
    assert value.values.isnan().all()
    assert (reward.file.read_bytes(), (reward.path / "meta.json").read_bytes()) == before
    asked: list[tuple[str, ...]] = []
    original = outputs.teacher_columns
    monkeypatch.setattr(
        "tdmpc2.training.teacher_cache.teacher_columns", lambda *args: asked.append(tuple(args[1])) or original(*args)
    )
    sampler = SliceSampler(EpisodeDataset.map(store), torch.tensor([4]))
    rows = sampler.rows(0, 8, 3, 1)
    filled = LazyTargets([reward, value], teacher).fill(sampler.gather(rows), rows)
    assert asked == [("value",)]
    assert torch.equal(filled.teacher_reward[0, :, 0], reward.values.view(-1)[rows[1]])  # type: ignore[index]
    compute_all([reward, value], teacher, batch_rows=500)
    assert asked[1:] == [("value",) if episode in (0, 1, 4) else ("reward", "value") for episode in range(7)]
    undisturbed = open_targets(store, "cd" * 32, "t"), open_targets(store, "cd" * 32, "t", "value")
    compute_all(undisturbed, teacher, batch_rows=500)
    assert reward.file.read_bytes() == undisturbed[0].file.read_bytes()
    assert_close(value.values, undisturbed[1].values, rtol=1e-5, atol=1e-5, equal_nan=True)


def cached_sampler(
    store: EpisodeStore, targets: TeacherTargets, episodes: Tensor | None = None, on_disk: bool = False
) -> SliceSampler:
    if on_disk:
        mapped = replace(EpisodeDataset.map(store), targets={"teacher_reward": targets.values})
        return SliceSampler(mapped, episodes)
    episodes = torch.arange(len(store.task)) if episodes is None else episodes
    column = targets.column(episodes)
    return SliceSampler(replace(EpisodeDataset.read(store, episodes), targets={"teacher_reward": column}))


Draw = Callable[[int], Batch]


def train(agent: TDMPC2, draw: Draw, updates: int = 20) -> dict[str, Tensor]:
    stats = [agent.update(draw(step)) for step in range(updates)]
    return {name: torch.stack([step[name] for step in stats]) for name in stats[0]}


@pytest.mark.parametrize("episodes", [None, torch.tensor([1, 4, 5])], ids=["all", "some"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_train_with_cached_rewards_equals_live_teacher(
    tmp_path: Path, tiny_cfg: Config, dtype: str, episodes: Tensor | None
) -> None:
    store, teacher = make_store(tmp_path / dtype, tiny_cfg, dtype=dtype), make_teacher(tiny_cfg)
    full, lazy = empty(store), open_targets(store, "cd" * 32, "same teacher, another name")
    compute_all(full, teacher, episodes)
    plain = SliceSampler(EpisodeDataset.map(store), episodes)
    memory = SliceSampler(EpisodeDataset.read(store, torch.arange(EPISODES) if episodes is None else episodes))
    from_memory, from_disk = LazyTargets(lazy, teacher, episodes), LazyTargets(lazy, teacher)

    def filled(sampler: SliceSampler, source: LazyTargets, step: int) -> Batch:
        rows = sampler.rows(step, 16, 3, 1)
        return source.fill(sampler.gather(rows), rows)

    draws: dict[str, Draw] = {
        "live": lambda step: plain.draw(step, 16, 3, 1),
        "memory": lambda step: cached_sampler(store, full, episodes).draw(step, 16, 3, 1),
        "disk": lambda step: cached_sampler(store, full, episodes, on_disk=True).draw(step, 16, 3, 1),
        "lazy": lambda step: filled(memory, from_memory, step),
        "lazy, half there": lambda step: filled(plain, from_disk, step),
    }
    agents = {name: TDMPC2(tiny_cfg, teacher if name == "live" else None) for name in draws}
    stats = {name: train(agents[name], draw) for name, draw in draws.items()}
    assert (stats["live"]["distillation_loss"] > 0.01).all()
    for name in draws:
        assert stats[name].keys() == stats["live"].keys()
        for loss in ("distillation_loss", "reward_loss", "value_loss", "consistency_loss", "total_loss", "pi_loss"):
            assert_close(stats[name][loss], stats["live"][loss], rtol=1e-6, atol=1e-6, msg=lambda m: f"{name} {m}")  # noqa: B023
        for key, weight in agents[name].model.state_dict().items():
            assert_close(weight, agents["live"].model.state_dict()[key], rtol=0, atol=1e-5, msg=lambda m: f"{name} {m}")  # noqa: B023
    present = ~lazy.values.isnan()
    assert 0 < present.sum() <= 20 * 16
    assert_close(lazy.values[present], full.values[present], rtol=0, atol=1e-6)


def test_update_with_cached_rewards_equals_live_teacher(store: EpisodeStore, tiny_cfg: Config) -> None:
    """The loss depends on the column's numbers, which take precedence over a live teacher."""
    batch = SliceSampler(EpisodeDataset.map(store)).draw(0, 8, 3, 1)
    given = batch._replace(teacher_reward=torch.full((1, 8, 1), 3.0))
    alone = TDMPC2(tiny_cfg).update(given)
    taught = TDMPC2(tiny_cfg, make_teacher(tiny_cfg)).update(given)
    assert float(alone["distillation_loss"]) == pytest.approx(9.0, rel=1e-4)  # a new student's rewards are zero
    assert torch.equal(alone["distillation_loss"], taught["distillation_loss"])
    assert "distillation_loss" not in TDMPC2(tiny_cfg).update(batch)


# -- lazy -------------------------------------------------------------------------------------------------------------


def test_lazy_cache_computes_each_row_once(
    store: EpisodeStore, teacher: TDMPC2, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Size] = []
    original = outputs.teacher_columns
    monkeypatch.setattr(
        "tdmpc2.training.teacher_cache.teacher_columns", lambda *args: asked.append(args[2].shape) or original(*args)
    )
    sampler, targets = SliceSampler(EpisodeDataset.map(store)), empty(store)
    lazy, two, three = (LazyTargets(targets, teacher, steps=steps) for steps in (1, 2, 3))
    rows = sampler.rows(0, 16, 3, 1)
    first = lazy.fill(sampler.gather(rows), rows)
    assert asked == [(1, 16, 24)]
    assert first.teacher_reward is not None
    assert first.teacher_reward.shape == (1, 16, 1)
    assert int((~targets.values.isnan()).sum()) == len(rows[1].unique())
    again = lazy.fill(sampler.gather(rows), rows)
    assert len(asked) == 1
    assert torch.equal(first.teacher_reward, again.teacher_reward)  # type: ignore[arg-type]
    rows[:, 3] = (
        rows[:, 3] - rows[:, 3] % 501 + torch.arange(490, 494)
    )  # one new row still takes a batch of the same shape
    before = targets.values.clone()
    lazy.fill(sampler.gather(rows), rows)
    assert asked == [(1, 16, 24)] * 2
    kept = ~before.isnan()
    assert torch.equal(before[kept], targets.values[kept])
    three.fill(sampler.gather(rows), rows)
    assert asked[2:] == [(3, 16, 24)]
    two.fill(sampler.gather(rows), rows)
    assert len(asked) == 3
    assert torch.equal(open_targets(store, SHA256, "x").values.isnan(), targets.values.isnan())  # the file has it, too


def test_lazy_cache_hit_needs_no_device_transfer(store: EpisodeStore, teacher: TDMPC2) -> None:
    """A meta tensor has no numbers, so reading one on the host would fail."""
    targets = empty(store)
    compute_all(targets, teacher)
    sampler = SliceSampler(EpisodeDataset.map(store))
    rows = sampler.rows(0, 16, 3, 1)
    filled = LazyTargets(targets, teacher, steps=3).fill(sampler.gather(rows).to("meta"), rows).teacher_reward
    assert filled is not None
    assert filled.shape == (3, 16, 1)
    assert filled.device.type == "meta"
