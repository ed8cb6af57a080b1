"""Nothing hangs or exhausts the machine: sizes are checked by arithmetic, and helpers have time limits."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, check_memory, model_parts, plan_parts, training_parts
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.support import mapped_files, runtime
from tdmpc2.training.preflight import preflight

WIDE: dict[str, Any] = {"model_size": None, "device": "cpu"}


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 19])
@pytest.mark.parametrize("task", ["mt30", "walker-walk"])
def test_estimate_of_a_model_is_a_close_lower_bound(size: int, task: str) -> None:
    """Estimates never refuse what would fit, and are close to the real size."""
    cfg = Config(task=task, model_size=size, device="cpu")
    real = sum(4 * p.numel() for p in WorldModel(cfg, torch.Generator().manual_seed(0)).state_dict().values())
    estimated = sum(part.bytes for part in model_parts(cfg))
    assert 0.95 * real <= estimated <= real


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("keys", [{"obs": "rgb"}, {"episodic": True}, {"obs": "rgb", "episodic": True}])
def test_estimate_of_a_model_of_images_or_terminations_is_a_close_lower_bound(size: int, keys: dict[str, Any]) -> None:
    """The image encoder used to be counted as one of states, and the termination head not at all."""
    cfg = Config(task="walker-walk", model_size=size, device="cpu", **keys)
    real = sum(4 * p.numel() for p in WorldModel(cfg, torch.Generator().manual_seed(0)).state_dict().values())
    estimated = sum(part.bytes for part in model_parts(cfg))
    assert 0.97 * real <= estimated <= real


def test_training_on_images_that_no_machine_holds_is_refused_by_its_key() -> None:
    """The first layer of the image encoder takes most of a batch's memory."""
    cfg = Config(task="walker-walk", obs="rgb", batch_size=2**16, device="cpu")
    with pytest.raises(ValueError, match=r"batch_size=65536.*the images of a batch alone would take"):
        check_memory(cfg, training_parts(cfg), 2**34)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"mlp_dim": 2**20}, "mlp_dim=1048576"),
        ({"enc_dim": 2**20, "num_enc_layers": 1000}, "num_enc_layers=1000"),
        ({"latent_dim": 2**20, "mlp_dim": 2**16}, "latent_dim=1048576"),
        ({"num_q": 1000, "mlp_dim": 2**14}, "num_q=1000"),
        ({"num_bins": 2**20, "mlp_dim": 2**16}, "num_bins=1048576"),
        ({"num_samples": 2**24, "num_bins": 2**14}, "num_samples=16777216"),
        ({"num_enc_layers": 1000, "enc_dim": 2**16}, "num_enc_layers=1000"),
    ],
)
def test_agent_that_no_machine_holds_is_refused_by_its_key(keys: dict[str, Any], named: str) -> None:
    """Such sizes used to end in an allocator's traceback, sometimes after minutes; arithmetic refuses them at once."""
    with pytest.raises(ValueError, match=named):
        TDMPC2(Config(**WIDE, **keys))


@pytest.mark.parametrize("keys", [{"vmax": 1e29}, {"vmin": -1e29}, {"vmax": 89.0}])
def test_bins_beyond_float32_are_refused(keys: dict[str, float]) -> None:
    """The message used to be torch's: 'value cannot be converted to type float without overflow'."""
    (name,) = keys
    with pytest.raises(ValueError, match=f"{name}=.*: the bins are in symlog space"):
        TDMPC2(Config(**WIDE, **keys))


@pytest.mark.parametrize("keys", [{"vmax": 1e308}, {"vmin": -1e308}])
def test_bins_beyond_all_use_are_refused(keys: dict[str, float]) -> None:
    """Such numbers are refused before any arithmetic with bins."""
    (name,) = keys
    with pytest.raises(ValueError, match=f"{name}=.*1e\\+30: nothing computes with more"):
        Config(**WIDE, **keys)


def test_task_of_a_file_that_no_machine_holds_is_refused() -> None:
    spec = {"name": "huge", "obs_dim": 10**9, "action_dim": 1, "episode_length": 500}
    with pytest.raises(ValueError, match=r"the encoder alone would take|obs_dim"):
        TDMPC2(Config(task="huge", task_specs=(spec,), **WIDE))


@pytest.mark.parametrize(
    "keys",
    [
        {"num_samples": 10**12}, {"batch_size": 10**12}, {"num_bins": 10**8}, {"mlp_dim": 10**9}, {"enc_dim": 10**9},
        {"num_q": 10**6}, {"num_enc_layers": 10**6}, {"eval_episodes": 10**9}, {"episodes_per_task": 10**12},
        {"episodes_per_file": 10**12}, {"iterations": 10**9}, {"task_dim": 10**9},
        {"latent_dim": 10**12},
    ],
)  # fmt: skip
def test_count_beyond_all_use_is_refused_with_its_limits(keys: dict[str, Any]) -> None:
    (name,) = keys
    with pytest.raises(ValueError, match=f"{name}=.* must be"):
        Config(**WIDE, **keys)


def test_training_that_no_machine_holds_is_refused_before_anything_is_written(cfg: Config) -> None:
    """A batch_size of 1e9 used to be refused only after run.json was written."""
    with pytest.raises(ValueError, match=r"batch_size=16777216, .* a batch and its gradients alone would take"):
        preflight(cfg.replace(batch_size=2**24, horizon=400, model_size=None, mlp_dim=2048), None)
    assert not cfg.run_dir.exists()


def test_memory_that_suffices_is_no_error() -> None:
    cfg = Config(**WIDE)
    check_memory(cfg, [*training_parts(cfg), *plan_parts(cfg)], 2**30)
    with pytest.raises(ValueError, match=r"make one of these smaller"):
        check_memory(cfg, training_parts(cfg), 2**20)


# -- threads and devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1_000_000, 2**31, 2**70])
def test_threads_beyond_the_machine_are_refused(count: int) -> None:
    """A million threads used to end the process by a signal, without a message."""
    with pytest.raises(ValueError, match=rf"num_threads={count} must be at most {runtime.most_threads()}"):
        runtime.set_num_threads(count)


@pytest.mark.parametrize("text", ["1000000", "9" * 40, "2147483648,4"])
def test_threads_of_the_environment_are_cut(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    assert runtime.set_num_threads(None) == runtime.most_threads()
    assert chosen == [runtime.most_threads()]


@pytest.mark.parametrize("text", ["", "0", "-3", "x", "²", " "])
def test_threads_of_an_environment_that_says_nothing_are_the_cores(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert 1 <= runtime.set_num_threads(None) <= (os.cpu_count() or 1)


@pytest.mark.parametrize("name", ["meta", "mps", "nonsense", "cuda:99", "xla"])
def test_device_that_is_not_there_is_one_line(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ValueError, match=f"device={name} is not available here") as error:
        runtime.resolve_device(name)
    assert len(str(error.value)) < 300


# -- rendering --------------------------------------------------------------------------------------------------------


def test_video_that_cannot_be_drawn_is_found_before_training(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an environment used to fail only at the first evaluation, after hours."""
    from tdmpc2.envs import registry

    class Blind:
        def reset(self, seed: int) -> None: ...
        def close(self) -> None: ...
        def render(self) -> None: ...

    monkeypatch.setattr(registry, "build_env", lambda *_: Blind())
    with pytest.raises(ValueError, match=r"evaluation: save_video: render\(\) of '.*' returns object"):
        preflight(cfg.replace(save_video=True, eval_freq=10), None)
    assert not cfg.run_dir.exists()


def test_data_set_is_no_run_directory(cfg: Config, tmp_path: Path) -> None:
    """work_dir=STORE used to train into the store."""
    from tdmpc2.training import run_record

    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "rows.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="is an episode store"):
        run_record.check(cfg.replace(work_dir=str(tmp_path / "store")), None)


# -- mapped files -----------------------------------------------------------------------------------------------------


def damage(kind: str, path: Path) -> None:
    if kind == "cut":
        os.truncate(path, 1000)
    else:
        with path.open("r+b") as file:
            file.seek(500)
            file.write(b"\0" * 100)


@pytest.mark.parametrize(
    ("kind", "said"), [("cut", r"was cut from [\d,]+ to 1,000 bytes"), ("zeros", "was written to")]
)
def test_training_whose_store_is_changed_stops_by_name_and_saves(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    """If a thread reads ahead when the store is cut, the run still ends by SIGBUS, in one line and unsaved."""
    from tdmpc2.data.tools.convert import to_store
    from tdmpc2.training import offline

    store = to_store([cfg.data_dir], tmp_path / "store", task="mt30")
    rows, check, calls = store.path / "rows.npy", mapped_files.UnchangedFile.check, itertools.count(1)

    def disturbed(self: mapped_files.UnchangedFile) -> None:
        if next(calls) == 17:  # two for the batch that is looked at first, two for each of seven others
            damage(kind, rows)
        check(self)

    monkeypatch.setattr(mapped_files.UnchangedFile, "check", disturbed)
    monkeypatch.setattr("tdmpc2.data.placement._ahead", lambda *_: 0)  # a thread that reads now would get SIGBUS
    with pytest.raises(ValueError, match=said) as error:
        offline.train(cfg.replace(data_dir=str(store.path), data_device="disk"), None)
    assert str(rows) in str(error.value)
    assert "\n" not in str(error.value)
    saved = torch.load(cfg.run_dir / "state.pt", weights_only=True)
    assert saved["step"] == 7


def test_bus_error_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    """The file is cut between two checks, so that reading it raises a bus error."""
    path = tmp_path / "rows.npy"
    path.write_bytes(bytes(2**20))
    code = f"""
import importlib.util, mmap, os
from pathlib import Path
spec = importlib.util.spec_from_file_location("mapped_files", {mapped_files.__file__!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
file = open({str(path)!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
module.name_bus_errors(Path({str(path)!r}))
os.truncate({str(path)!r}, 1000)
print(mapped[500_000])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr


def test_file_that_is_as_it_was_passes(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(bytes(1000))
    with path.open("rb") as file:
        watched = mapped_files.UnchangedFile(file.fileno(), path)
        path.read_bytes()
        watched.check()
        with path.open("ab") as more:
            more.write(b"x")
        with pytest.raises(mapped_files.FileChangedError, match="was written to"):
            watched.check()
