"""Teacher targets computed once: the same training as with a live teacher, files that survive whatever happens."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.dataset import Batch, EpisodeDataset, SliceSampler
from tdmpc2.data.store.store import EpisodeStore, StoreFile, StoreMeta, header
from tdmpc2.data.store.teacher_columns import verify_targets
from tdmpc2.distillation import outputs
from tdmpc2.nn.math import decode
from tdmpc2.training import teacher_cache as module
from tdmpc2.training.teacher_cache import LazyTargets, TeacherTargets, compute_all, main, open_targets
from tests.conftest import largest_file
from tests.kill import killed_at_random

SHA256 = "ab" * 32
EPISODES = 7


def make_store(
    path: Path, cfg: Config, episodes: int = EPISODES, dtype: str = "float32", seed: int = 0
) -> EpisodeStore:
    """Random episodes of the tasks in turn."""
    meta = StoreMeta(cfg.task, cfg.task_specs, episodes, dtype)
    shape, layout = (episodes, meta.layout.rows), meta.layout
    generator = torch.Generator().manual_seed(seed)
    task = np.arange(episodes, dtype="<i4") % layout.num_tasks
    obs = torch.randn(*shape, layout.obs_dim, generator=generator)
    action = torch.rand(*shape, layout.action_dim, generator=generator) * 2 - 1
    reward = torch.rand(shape, generator=generator)
    action[:, 0] = reward[:, 0] = torch.nan
    rows = meta.row_format.join(obs, action, reward).numpy()
    path.mkdir(parents=True)
    files = {}
    for name, start, content in (
        ("rows.npy", header(shape, meta.row_format.record), rows.tobytes()),
        ("task.npy", header(shape[:1], task.dtype), task.tobytes()),
    ):
        (path / name).write_bytes(start + content)
        files[name] = StoreFile(len(start) + len(content), (hashlib.sha256(content).hexdigest(),))
    (path / "meta.json").write_text(replace(meta, files=files).to_json())
    return EpisodeStore.open(path)


def make_teacher(cfg: Config) -> TDMPC2:
    """An agent of another width whose rewards, 0.2 to 1, depend on all its inputs (a new one's are all zero)."""
    teacher = TDMPC2(cfg.replace(seed=7, latent_dim=24))
    model, generator = teacher.model, torch.Generator().manual_seed(3)
    last: Any = model._reward[-1]
    with torch.no_grad():
        last.weight.normal_(0, 0.5, generator=generator)
        last.bias.copy_(-4 * (model.bins - 0.5).square())  # few bins with weight, as after training
        if cfg.multitask:
            model._task_emb.weight.normal_(0, 0.5, generator=generator)
    return teacher


@pytest.fixture
def store(tmp_path: Path, tiny_cfg: Config) -> EpisodeStore:
    return make_store(tmp_path / "store", tiny_cfg)


@pytest.fixture
def teacher(tiny_cfg: Config) -> TDMPC2:
    return make_teacher(tiny_cfg)


def empty(store: EpisodeStore) -> TeacherTargets:
    return open_targets(store, SHA256, "teacher.pt")


def one_by_one(store: EpisodeStore, teacher: TDMPC2, episode: int, row: int) -> float:
    """The slow, obvious way to the reward of a row."""
    obs, action, _ = store.meta.row_format.split(store.rows[episode])
    task = store.task[episode] if teacher.cfg.multitask else None
    return float(
        outputs.teacher_columns(teacher.model, ("reward",), obs[row - 1].float(), action[row].float(), task)["reward"]
    )


def content(targets: TeacherTargets) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in targets.path.iterdir()}


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_row_t_has_the_reward_of_the_step_that_led_to_it(tmp_path: Path, tiny_cfg: Config, dtype: str) -> None:
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
    batch = cached_sampler(store, targets).sample(0, 32, 3, seed=1)
    assert batch.teacher_reward is not None
    for t in range(3):
        live = outputs.teacher_columns(teacher.model, ("reward",), batch.obs[t], batch.action[t], batch.task)["reward"]
        assert_close(batch.teacher_reward[t], live, rtol=0, atol=1e-6)


def test_single_task_teacher(tmp_path: Path, tiny_cfg: Config) -> None:
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
    """A teacher whose values, too, depend on their inputs."""
    teacher = make_teacher(cfg)
    generator, model = torch.Generator().manual_seed(5), teacher.model
    with torch.no_grad():
        model._Qs.params[8].normal_(0, 0.5, generator=generator)
        model._Qs.params[9].copy_(-4 * (model.bins - 2).square())
    return teacher


def open_columns(store: EpisodeStore, *names: str) -> list[TeacherTargets]:
    return [open_targets(store, SHA256, "teacher.pt", name) for name in names]


def test_values_in_a_column_of_their_own(
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
    assert sorted(content(columns[0])) == ["meta.json", "reward.npy", "value.npy"]
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


def test_a_column_is_added_to_others(store: EpisodeStore, tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is neither made nor computed again, whole or in part, in full or lazily."""
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
def test_training_is_that_of_a_live_teacher(
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
        "live": lambda step: plain.sample(step, 16, 3, 1),
        "memory": lambda step: cached_sampler(store, full, episodes).sample(step, 16, 3, 1),
        "disk": lambda step: cached_sampler(store, full, episodes, on_disk=True).sample(step, 16, 3, 1),
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


def test_cached_targets_change_the_update_as_the_teacher_would(store: EpisodeStore, tiny_cfg: Config) -> None:
    """The column is used, not merely carried: other numbers give another loss, and it wins over a live teacher."""
    batch = SliceSampler(EpisodeDataset.map(store)).sample(0, 8, 3, 1)
    given = batch._replace(teacher_reward=torch.full((1, 8, 1), 3.0))
    alone = TDMPC2(tiny_cfg).update(given)
    taught = TDMPC2(tiny_cfg, make_teacher(tiny_cfg)).update(given)
    assert float(alone["distillation_loss"]) == pytest.approx(9.0, rel=1e-4)  # a new student's rewards are zero
    assert torch.equal(alone["distillation_loss"], taught["distillation_loss"])
    assert "distillation_loss" not in TDMPC2(tiny_cfg).update(batch)


# -- lazy -------------------------------------------------------------------------------------------------------------


def test_lazy_asks_the_teacher_once_for_each_row(
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
    )  # one row that is new: a batch of the same shape
    before = targets.values.clone()
    lazy.fill(sampler.gather(rows), rows)
    assert asked == [(1, 16, 24)] * 2
    kept = ~before.isnan()
    assert torch.equal(before[kept], targets.values[kept])
    three.fill(sampler.gather(rows), rows)
    assert asked[2:] == [(3, 16, 24)]
    two.fill(sampler.gather(rows), rows)
    assert len(asked) == 3
    assert torch.equal(open_targets(store, SHA256, "x").values.isnan(), targets.values.isnan())  # it is in the file


def test_a_lazy_hit_reads_nothing_from_the_device(store: EpisodeStore, teacher: TDMPC2) -> None:
    """A meta tensor has no numbers: reading one on the host is an error."""
    targets = empty(store)
    compute_all(targets, teacher)
    sampler = SliceSampler(EpisodeDataset.map(store))
    rows = sampler.rows(0, 16, 3, 1)
    filled = LazyTargets(targets, teacher, steps=3).fill(sampler.gather(rows).to("meta"), rows).teacher_reward
    assert filled is not None
    assert filled.shape == (3, 16, 1)
    assert filled.device.type == "meta"


# -- files ------------------------------------------------------------------------------------------------------------


def test_column_of_chosen_episodes(store: EpisodeStore, teacher: TDMPC2) -> None:
    targets, chosen = empty(store), torch.tensor([0, 2, 6])
    assert not targets.complete(chosen)
    compute_all(targets, teacher, chosen, batch_rows=1000)
    assert targets.complete(chosen)
    assert not targets.complete()
    assert targets.missing().tolist() == [False, True, False, True, True, True, False]
    assert targets.missing(chosen).tolist() == [False] * 3
    assert torch.equal(targets.column(chosen)[:, 1:], targets.values[chosen][:, 1:])
    with pytest.raises(ValueError, match="is not complete"):
        targets.column()
    written = targets.values[chosen].clone()
    compute_all(targets, teacher)
    assert targets.complete()
    assert torch.equal(targets.values[chosen][:, 1:], written[:, 1:])


def test_another_teacher_and_other_data_have_columns_of_their_own(
    store: EpisodeStore, tiny_cfg: Config, tmp_path: Path
) -> None:
    first, other = empty(store), open_targets(store, "cd" * 32, "other.pt")
    first.values[0, 1] = 5.0
    assert other.values.isnan().all()
    assert float(empty(store).values[0, 1]) == 5.0
    new_data = make_store(tmp_path / "new", tiny_cfg, seed=1)
    shutil.copytree(store.path / "targets", new_data.path / "targets")
    assert empty(new_data).values.isnan().all()
    assert sum("of other data" in line for line in verify_targets(new_data)) == 2
    meta = json.loads((first.path / "meta.json").read_text())
    assert meta == {"format": 1, "teacher": "teacher.pt", "teacher_sha256": SHA256, "data_checksum": store.checksum}


def test_columns_that_are_damaged(store: EpisodeStore, teacher: TDMPC2) -> None:
    targets = empty(store)
    compute_all(targets, teacher)
    assert verify_targets(store) == []
    good, meta = (targets.path / "reward.npy").read_bytes(), (targets.path / "meta.json").read_text()
    start = len(good) - 4 * targets.values.numel()

    def with_value(position: int, value: float) -> bytes:
        where = start + 4 * position
        return good[:where] + np.float32(value).tobytes() + good[where + 4 :]

    damages: list[tuple[str, Any, str]] = [
        ("reward.npy", good[:-4], r"14,152 bytes instead of 14,156"),
        ("reward.npy", b"x" * len(good), r"does not hold \(7, 501\) of float32"),
        ("meta.json", b"{", r"is damaged \[JSONDecodeError"),
        ("meta.json", b"[]", r"is damaged \[TypeError"),
        ("meta.json", meta.replace('"format": 1', '"format": 2').encode(), r"has format 2, this version reads 1"),
        ("meta.json", meta.replace(SHA256, SHA256[:-1] + "c").encode(), r"of another teacher than its name says"),
    ]
    for name, damaged, message in damages:
        original = (targets.path / name).read_bytes()
        (targets.path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=message) as error:
            empty(store)
        assert f"Delete the directory {targets.path}" in str(error.value)
        if "another teacher" not in message:  # only a user of the teacher knows its checksum's end
            assert verify_targets(store) == [str(error.value)]
        (targets.path / name).write_bytes(original)
    for position, value, where in (
        (501 * 3 + 7, np.inf, "inf in episode 3, row 7"),
        (501, 0.5, "0.5 in episode 1, row 0"),
    ):
        (targets.path / "reward.npy").write_bytes(with_value(position, value))
        (line,) = verify_targets(store)
        assert where in line
    (targets.path / "reward.npy").write_bytes(good)
    (value,) = open_columns(store, "value")
    assert verify_targets(store) == []
    value.values[2, 3] = torch.inf
    (line,) = verify_targets(store)
    assert f"{value.path / 'value.npy'} holds inf in episode 2, row 3" in line
    value.file.unlink()
    (targets.path / "reward.npy").unlink()
    (line,) = verify_targets(store)
    assert "is damaged [FileNotFoundError" in line
    assert empty(store).values.isnan().all()  # nothing of it was there to lose


def test_a_full_disk_leaves_nothing(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with largest_file(10_000), pytest.raises(ValueError, match=r"Could not make .*distillation_cache=off works"):
        empty(store)
    assert [path.name for path in (store.path / "targets").iterdir() if path.suffix != ".lock"] == []
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(ValueError, match=r"needs 0.00 GB, but 0.00 GB are free: make room"):
        empty(store)
    monkeypatch.undo()
    leftover = store.path / "targets" / f".{SHA256[:16]}-{store.checksum[:16]}.tmp"  # of a process that was killed
    leftover.mkdir()
    (leftover / "reward.npy").write_bytes(b"half")
    assert empty(store).values.isnan().all()
    assert not leftover.exists()


def test_no_part_of_the_file_is_a_hole(store: EpisodeStore) -> None:
    status = (empty(store).path / "reward.npy").stat()
    assert status.st_blocks * 512 >= status.st_size


def test_read_only_columns(store: EpisodeStore, teacher: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk: complete ones are used, others are filled for this process only."""
    compute_all(empty(store), teacher, torch.tensor([0, 1]))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    targets = empty(store)
    before = content(targets)
    compute_all(targets, teacher, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"reward\.npy is not complete and cannot be written"):
        compute_all(targets, teacher)
    sampler = SliceSampler(EpisodeDataset.map(store))
    rows = sampler.rows(0, 16, 3, 1)
    LazyTargets(targets, teacher).fill(sampler.gather(rows), rows)
    assert not targets.values.view(-1)[rows[1]].isnan().any()
    assert content(targets) == before


@pytest.mark.parametrize("way", ["full", "lazy"])
def test_an_output_that_is_not_finite_is_an_error(store: EpisodeStore, teacher: TDMPC2, way: str) -> None:
    targets = empty(store)
    with torch.no_grad():
        teacher.model._task_emb.weight[2] = torch.nan  # type: ignore[union-attr,operator]
    sampler = SliceSampler(EpisodeDataset.map(store), torch.tensor([2]))
    rows = sampler.rows(0, 8, 3, 1)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "full": (lambda: compute_all(targets, teacher, batch_rows=500), 1),
        "lazy": (lambda: LazyTargets(targets, teacher).fill(sampler.gather(rows), rows), int(rows[1, 0] % 501)),
    }
    run, row = ways[way]
    with pytest.raises(ValueError, match=r"The teacher's reward is nan in episode 2, row \d+ of .*store") as error:
        run()
    assert f"row {row} of" in str(error.value)
    assert targets.missing().tolist() == [way == "lazy"] * 2 + [True] * 5
    assert targets.values[2].isnan().all()


def test_teacher_of_another_task_set(store: EpisodeStore, tiny_cfg: Config) -> None:
    other = TDMPC2(tiny_cfg.replace(task="mt80"))
    for use in (lambda: compute_all(empty(store), other), lambda: LazyTargets(empty(store), other)):
        with pytest.raises(ValueError, match=r"holds task=mt30 \(30 tasks\), but the teacher plays task=mt80"):
            use()


# -- interruptions ----------------------------------------------------------------------------------------------------


def test_interrupted_at_every_block(tmp_path: Path, tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = empty(make_store(tmp_path / "undisturbed", tiny_cfg))
    compute_all(undisturbed, make_teacher(tiny_cfg), batch_rows=1000)
    targets = empty(make_store(tmp_path / "disturbed", tiny_cfg))
    original = module._outputs
    for left in ([2, 2, 2, 1], [2, 2, 1], [2, 1], [1]):  # episodes of the blocks that are still to be computed
        seen: list[int] = []

        def interrupted(*args: Any) -> dict[str, Tensor]:
            seen.append(len(args[3]))  # noqa: B023
            if len(seen) == 2:  # noqa: B023
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(module, "_outputs", interrupted)
        if len(left) > 1:
            with pytest.raises(KeyboardInterrupt):
                compute_all(targets, make_teacher(tiny_cfg), batch_rows=1000)
        else:
            compute_all(targets, make_teacher(tiny_cfg), batch_rows=1000)
        assert seen == left[:2]
    assert content(targets) == content(undisturbed)


def test_a_block_of_which_a_part_is_there(tmp_path: Path, tiny_cfg: Config) -> None:
    """As after a crash of the machine, which may have kept any pages of a block."""
    undisturbed, targets = (empty(make_store(tmp_path / name, tiny_cfg)) for name in ("undisturbed", "disturbed"))
    for column in (undisturbed, targets):
        compute_all(column, make_teacher(tiny_cfg), batch_rows=1000)
    targets.values[3, 100:300] = torch.nan
    targets.values[5] = torch.nan
    compute_all(targets, make_teacher(tiny_cfg), batch_rows=1000)
    assert content(targets) == content(undisturbed)


def _compute(path: Path, cfg: Config) -> None:
    torch.set_num_threads(1)
    compute_all(empty(EpisodeStore.open(path)), make_teacher(cfg), batch_rows=500)


def test_processes_share_a_column(tmp_path: Path, tiny_cfg: Config) -> None:
    """Three make and fill one column at once, lazily and in full, while this one reads it."""
    undisturbed = empty(make_store(tmp_path / "undisturbed", tiny_cfg))
    compute_all(undisturbed, make_teacher(tiny_cfg), batch_rows=500)
    store = make_store(tmp_path / "shared", tiny_cfg)
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_compute, args=(store.path, tiny_cfg)) for _ in range(3)]
    for process in processes:
        process.start()
    targets, teacher = empty(store), make_teacher(tiny_cfg)
    lazy, sampler = LazyTargets(targets, teacher), SliceSampler(EpisodeDataset.map(store))
    for step in range(30):
        rows = sampler.rows(step, 16, 3, 1)
        filled = lazy.fill(sampler.gather(rows), rows).teacher_reward
        assert_close(filled[0, :, 0], undisturbed.values.view(-1)[rows[1]], rtol=0, atol=1e-6)  # type: ignore[index]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert targets.complete()
    assert_close(targets.values, undisturbed.values, rtol=0, atol=1e-6, equal_nan=True)


def test_command(store: EpisodeStore, teacher: TDMPC2, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.pt"
    teacher.save(path)
    main([str(store.path), str(path), "--device", "cpu", "--batch-rows", "1000"])
    text = capsys.readouterr().out
    assert "Teacher's reward: done, 7 episodes in" in text
    assert "is complete" in text
    targets = open_targets(store, file_sha256(path), "t.pt")
    assert targets.complete()
    before = content(targets)
    main([str(store.path), str(path), "--device", "cpu", "--columns", "value", "reward"])
    text = capsys.readouterr().out
    assert "Teacher's value: done, 7 episodes in" in text
    assert "is complete: value, reward" in text
    assert open_targets(store, file_sha256(path), "t.pt", "value").complete()
    assert content(targets).items() > before.items()
    torch.set_num_threads(1)
    for arguments, message in (
        (["nowhere", str(path)], "data_dir=nowhere is not a directory"),
        ([str(store.path), "nowhere.pt"], "nowhere.pt"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    killed_at_random("cache", times=3, seed=1, root=tmp_path)
