"""Where and in which form training keeps its data; the results do not depend on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data import placement
from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.episodes import write_episodes
from tdmpc2.data.placement import choose_place, data_bytes, data_record, open_data, plan_place
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.tasks import MT30, lookup
from tdmpc2.training.offline import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TASKS = ("walker-stand", "pendulum-spin")


@pytest.fixture
def cfg(tmp_path: Path, tiny_cfg: Config) -> Config:
    """Write four episodes of two tasks to two chunk files and configure a run on them."""
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(TASKS):
        reward = torch.rand(2, 501, generator=generator)
        action = torch.rand(2, 501, 6, generator=generator) * 2 - 1
        action[:, 0] = reward[:, 0] = torch.nan
        obs = torch.randn(2, 501, 24, generator=generator)
        write_chunk(tmp_path / "data" / f"chunk_{number}.pt", obs, action, reward, torch.full((2,), MT30.index(name)))
    return tiny_cfg.replace(
        tasks=TASKS, data_dir=str(tmp_path / "data"), work_dir=str(tmp_path / "run"), steps=6, eval_freq=0, log_freq=1,
        num_threads=1,
    )  # fmt: skip


def memory(monkeypatch: pytest.MonkeyPatch, **free: float) -> None:
    monkeypatch.setattr(placement, "available_memory", lambda device: int(free[device.type]))


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [(CUDA, 50e9, "cuda"), (CUDA, 70e9, "cpu"), (CUDA, 130e9, "disk"), (CPU, 50e9, "cpu"), (CPU, 130e9, "disk")],
)
def test_choose_place_auto_takes_fastest_with_room(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, size: float, expected: str
) -> None:
    memory(monkeypatch, cuda=80e9, cpu=200e9)
    assert choose_place("auto", device, int(size)) == expected
    assert choose_place("disk", device, int(size)) == "disk"


def test_choose_place_asked_for_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, cuda=80e9, cpu=20e9)
    assert choose_place("cpu", CUDA, int(12e9)) == "cpu"
    with pytest.raises(
        ValueError, match=r"data_device=cpu: 13\.0 GB are needed for the episodes, and of 20\.0 GB free"
    ):
        choose_place("cpu", CUDA, int(13e9))
    with pytest.raises(
        ValueError, match=r"data_device=cuda: 70\.0 GB are needed for the episodes, and of 80\.0 GB free"
    ):
        choose_place("cuda", CUDA, int(70e9))
    with pytest.raises(ValueError, match=r"13\.0 GB are needed for the buffer.*data_device=disk, or a smaller one"):
        choose_place("cpu", CUDA, int(13e9), "the buffer", "or a smaller one")
    with pytest.raises(ValueError, match="data_device=cuda, but training is on cpu"):
        choose_place("cuda", CPU, 1)


def test_outputs_of_a_teacher_count_where_data_are_placed(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teacher outputs need memory beside the episodes, so episodes that fit alone may have to stay on disk."""
    bare, wide = data_bytes(cfg), data_bytes(cfg, ("policy", "plan"))
    assert wide == bare + 4 * 501 * 4 * 3 * cfg.action_dim
    memory(monkeypatch, cpu=(bare + wide) / 2 / 0.6)
    assert plan_place(cfg, CPU) == "cpu"
    assert plan_place(cfg, CPU, ("policy", "plan")) == "disk"
    with pytest.raises(ValueError, match="are needed for the episodes and the teacher's outputs for them, and of"):
        plan_place(cfg.replace(data_device="cpu"), CPU, ("policy", "plan"))
    teacher = Config(checkpoint=str(tmp_path / "teacher.pt"))
    TDMPC2(cfg).save(tmp_path / "teacher.pt")
    run = cfg.replace(distillation_cache="full", distillation_targets=("reward", "policy"), steps=1)
    for keys in ({"dry_run": True}, {}):
        memory(monkeypatch, cpu=(bare + 1000) / 0.6)
        train(run.replace(**keys), teacher)
        assert " on disk" in capsys.readouterr().out


def as_store(cfg: Config) -> Config:
    out = Path(cfg.data_dir).parent / "store"
    import_episodes([cfg.data_dir], out, cfg.task, cfg.task_specs, quiet=True)
    return cfg.replace(data_dir=str(out))


def on_disk(cfg: Config) -> Config:
    return cfg.replace(data_device="disk")


@pytest.mark.parametrize(
    "change", [on_disk, as_store, lambda cfg: on_disk(as_store(cfg))], ids="chunks-disk store store-disk".split()
)
@pytest.mark.parametrize("balance", ["episodes", "tasks"])
def test_train_on_any_place_gives_equal_weights(
    cfg: Config, tmp_path: Path, change: Callable[[Config], Config], balance: str
) -> None:
    cfg = cfg.replace(task_balance=balance)
    straight = train(cfg.replace(work_dir=str(tmp_path / "straight")), None)
    other = train(change(cfg).replace(work_dir=str(tmp_path / "other")), None)
    one, two = (torch.load(path, weights_only=True)["model"] for path in (straight, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_open_data_beyond_memory_imports_once(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory(monkeypatch, cpu=100_000)
    record = data_record(cfg.data_dir)
    data = open_data(cfg, CPU)
    assert (data.place, data.ahead, len(data.sampler)) == ("disk", 8, 4)
    store = Path(cfg.data_dir) / "store"
    assert data.store is not None
    assert data.store.path == store
    assert "mport" in capsys.readouterr().out
    before = (store / "meta.json").stat().st_mtime_ns
    open_data(cfg, CPU)
    assert (store / "meta.json").stat().st_mtime_ns == before
    assert data_record(cfg.data_dir) == record  # the same data: a run that began with the chunk files goes on


@pytest.mark.parametrize("data_device", ["cpu", "disk"])
def test_open_data_includes_episodes_only_in_store(cfg: Config, data_device: str) -> None:
    """A directory whose store was imported from deleted files, beside new chunk files, is refused."""
    open_data(on_disk(cfg), CPU)
    root = Path(cfg.data_dir)
    (root / "chunk_0.pt").unlink()
    (root / "chunk_1.pt").rename(root / "chunk_7.pt")
    with pytest.raises(
        ValueError, match=r"holds chunk files and a store that was imported from chunk_0\.pt, which is gone"
    ):
        open_data(cfg.replace(data_device=data_device), CPU)


def test_open_data_beside_a_stale_store_says_so(cfg: Config) -> None:
    """A store is neither used nor replaced once its files hold other episodes, even of the same names and sizes."""
    before = open_data(on_disk(cfg), CPU).sampler.draw(0, 20, 3, 1).obs
    path = Path(cfg.data_dir) / "chunk_0.pt"
    chunk, size = {name: tensor.clone() for name, tensor in read_chunk(path).items()}, path.stat().st_size
    path.unlink()
    write_chunk(path, chunk["obs"] + 1, chunk["action"], chunk["reward"], chunk["task"])
    assert path.stat().st_size == size
    places = [cfg.replace(data_device=place) for place in ("cpu", "disk")]
    for placed in places:
        with pytest.raises(ValueError, match=r"imported from another file of the name chunk_0\.pt"):
            open_data(placed, CPU)
    (path.parent / "store").rename(path.parent.parent / "old")
    for placed in places:
        assert not torch.equal(before, open_data(placed, CPU).sampler.draw(0, 20, 3, 1).obs)


def test_train_continues_after_data_moved_to_disk(cfg: Config, tmp_path: Path) -> None:
    straight = train(cfg.replace(work_dir=str(tmp_path / "straight")), None)
    train(cfg.replace(steps=3), None)
    resumed = train(cfg.replace(data_device="disk"), None)
    one, two = (torch.load(path, weights_only=True)["model"] for path in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_open_data_on_disk_selects_as_in_memory(cfg: Config) -> None:
    cfg = cfg.replace(tasks=("pendulum-spin",), max_episodes_per_task=1)
    chunks, disk = open_data(cfg, CPU), open_data(on_disk(cfg), CPU)
    for data in (chunks, disk):
        assert len(data.sampler) == 1
        assert set(data.sampler.draw(0, 20, 3, 1).task.tolist()) == {MT30.index("pendulum-spin")}
    assert torch.equal(chunks.sampler.draw(0, 20, 3, 1).obs, disk.sampler.draw(0, 20, 3, 1).obs)


def test_open_data_of_other_task_set_is_refused(cfg: Config) -> None:
    other = Config(task="walker-stand", data_dir=as_store(cfg).data_dir, device="cpu")
    message = "holds other tasks than task=walker-stand; the first difference is id 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_data(other, CPU)


def test_train_shows_waiting_for_data(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train(on_disk(cfg), None)
    shares = re.findall(r"it/s   data (\d+)%", capsys.readouterr().out)
    assert len(shares) == cfg.steps
    assert all(0 <= int(share) <= 100 for share in shares)
    assert "data_wait" not in (cfg.run_dir / "train.csv").read_text()  # times would make equal runs differ


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("place", ["cuda", "cpu", "disk"])
def test_open_data_of_any_place_gives_gpu_the_same_batches(cfg: Config, place: str) -> None:
    expected = open_data(cfg, CPU).sampler.draw(0, 20, 3, 1)
    data = open_data(cfg.replace(data_device=place), CUDA)
    assert data.place == place
    batch = data.sampler.draw(0, 20, 3, 1).to("cuda")
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected[:4], batch[:4], strict=True))


@pytest.mark.parametrize("form", ["chunks", "store"])
def test_single_task_from_data_of_many_is_told_how(tmp_path: Path, form: str) -> None:
    """The refusal used to leave out that tasks=[...] trains on one task of a set."""
    data, sizes = tmp_path / "data", lookup("pendulum-spin")
    episode = (np.zeros((501, sizes.obs_dim)), np.zeros((500, sizes.action_dim)), np.zeros(500))
    write_episodes(data, "pendulum-spin", [episode], task_set="mt30")
    if form == "store":
        import_episodes([data], tmp_path / "store", "mt30", [lookup(name) for name in MT30], quiet=True)
        data = tmp_path / "store"
    with pytest.raises(ValueError, match=r"tasks=\[pendulum-spin\]$"):
        open_data(Config(task="pendulum-spin", data_dir=str(data)), CPU, "cpu")
