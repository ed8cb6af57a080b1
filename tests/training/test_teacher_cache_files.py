"""Files of cached teacher outputs survive kills, damage, read-only disks and several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.commands.targets import main
from tdmpc2.config import Config
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import open_targets
from tdmpc2.data.store.verify_columns import verify_targets
from tdmpc2.support.mapped_files import FileChangedError
from tdmpc2.training import teacher_cache as module
from tdmpc2.training.teacher_cache import LazyTargets, compute_all
from tests.helpers.agents import make_teacher
from tests.helpers.data import make_store
from tests.helpers.disks import largest_file
from tests.helpers.teacher_cache import SHA256, content, empty, open_columns

# -- files ------------------------------------------------------------------------------------------------------------


def test_cache_of_chosen_episodes_fills_only_them(store: EpisodeStore, teacher: TDMPC2) -> None:
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


@pytest.mark.parametrize("file", ["reward.npy", "reward.check.npy"])
@pytest.mark.parametrize("use", ["take", "put", "column", "complete"])
def test_cache_cut_while_it_is_mapped_is_refused(store: EpisodeStore, teacher: TDMPC2, file: str, use: str) -> None:
    """A run used to end by SIGBUS without a message if another program cut a file of its cache."""
    targets = empty(store)
    compute_all(targets, teacher)
    os.truncate(targets.path / file, 200)
    rows = torch.tensor([1, len(targets.values.view(-1)) - 1])
    calls = {
        "take": lambda: targets.take(rows),
        "put": lambda: targets.put(rows, torch.zeros(2)),
        "column": targets.column,
        "complete": targets.complete,
    }
    with pytest.raises(FileChangedError, match=rf"{re.escape(file)} was cut from [\d,]+ to 200 bytes\. Delete"):
        calls[use]()


def test_cache_of_other_teacher_or_data_is_separate(store: EpisodeStore, tiny_cfg: Config, tmp_path: Path) -> None:
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


def test_cache_damaged_is_refused(store: EpisodeStore, teacher: TDMPC2) -> None:
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
        column = f"{targets.path / 'reward'}.npy and reward.check.npy"
        what = column if name == "reward.npy" else f"the directory {targets.path}"
        assert f"Delete {what}" in str(error.value)
        if "another teacher" not in message:  # verify only knows the beginning of the checksum
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
    assert empty(store).values.isnan().all()  # there was nothing to lose


def test_cache_on_full_disk_leaves_nothing(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with largest_file(10_000), pytest.raises(ValueError, match=r"Could not make .*distillation_cache=off works"):
        empty(store)
    assert [path.name for path in (store.path / "targets").iterdir() if path.suffix != ".lock"] == []
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(ValueError, match=r"needs .* more and its disk has 10,000 bytes free: make room"):
        empty(store)
    monkeypatch.undo()
    leftover = store.path / "targets" / f".{SHA256[:16]}-{store.checksum[:16]}.tmp"  # left by a killed process
    leftover.mkdir()
    (leftover / "reward.npy").write_bytes(b"half")
    assert empty(store).values.isnan().all()
    assert not leftover.exists()


def test_cache_file_is_reserved_in_full(store: EpisodeStore) -> None:
    status = (empty(store).path / "reward.npy").stat()
    assert status.st_blocks * 512 >= status.st_size


def test_cache_readonly_is_used_as_it_is(store: EpisodeStore, teacher: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only disk, complete caches are used and others are filled for this process only."""
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
def test_cache_of_non_finite_output_is_refused(store: EpisodeStore, teacher: TDMPC2, way: str) -> None:
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


def test_cache_of_teacher_of_other_task_set_is_refused(store: EpisodeStore, tiny_cfg: Config) -> None:
    other = TDMPC2(tiny_cfg.replace(task="mt80"))
    for use in (lambda: compute_all(empty(store), other), lambda: LazyTargets(empty(store), other)):
        with pytest.raises(ValueError, match=r"holds task=mt30 \(30 tasks\), but the teacher plays task=mt80"):
            use()


# -- interruptions ----------------------------------------------------------------------------------------------------


def test_cache_interrupted_at_any_block_continues(
    tmp_path: Path, tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_cache_of_partial_block_is_completed(tmp_path: Path, tiny_cfg: Config) -> None:
    """After a crash of the machine, any pages of a block may be missing."""
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


def test_cache_filled_by_several_processes_is_complete(tmp_path: Path, tiny_cfg: Config) -> None:
    """Three processes fill one column at once while this one fills it lazily and reads it."""
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


def test_cache_command_fills_columns(
    store: EpisodeStore, teacher: TDMPC2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["nowhere", str(path)], "nowhere is not a directory"),
        ([str(store.path), "nowhere.pt"], "nowhere.pt"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
