"""``python -m tdmpc2.data``: measuring, checking and converting both forms of data."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tdmpc2.data import __main__ as cli
from tdmpc2.data import placement, source
from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore, StoreFile, StoreMeta, header
from tdmpc2.data.store.teacher_columns import open_targets
from tdmpc2.data.tools import audit, verify
from tests.conftest import REPO
from tests.test_data import ALL, SPECS, L, save_raw

TASKS = [0, 0, 1, 0, 1, 0, 0, 1, 1]  # and none of task 2
FORMS = ("chunks", "store")


def episodes(tasks: list[int] = TASKS, seed: int = 0) -> dict[str, Tensor]:
    """Random episodes in the padded form, as a recording has them."""
    generator = torch.Generator().manual_seed(seed)
    n, task = len(tasks), torch.tensor(tasks, dtype=torch.int32)
    own_obs = torch.arange(4) < torch.tensor([s.obs_dim for s in SPECS])[task.long(), None]
    own_action = torch.arange(2) < torch.tensor([s.action_dim for s in SPECS])[task.long(), None]
    obs = torch.randn(n, L + 1, 4, generator=generator) * own_obs[:, None]
    action = (2 * torch.rand(n, L + 1, 2, generator=generator) - 1) * own_action[:, None]
    reward = torch.rand(n, L + 1, generator=generator)
    action[:, 0] = reward[:, 0] = torch.nan
    return {"obs": obs, "action": action, "reward": reward, "task": task[:, None].expand(n, L + 1).clone()}


def write_chunks(root: Path, data: dict[str, Tensor], sizes: tuple[int, ...] = (4, 5)) -> Path:
    """Chunk files of some episodes each, unchecked, with the record of collecting that names the tasks."""
    root.mkdir(parents=True)
    parts = [
        dict(zip(data, values, strict=True)) for values in zip(*(v.split(sizes) for v in data.values()), strict=True)
    ]
    for number, part in enumerate(parts):
        save_raw(root / f"chunk_{number}.pt", {name: values.clone() for name, values in part.items()})
    record = {"format": 1, "task": "three", "tasks": [asdict(spec) for spec in SPECS], "collections": []}
    (root / "collect.json").write_text(json.dumps(record))
    return root


def write_store(root: Path, data: dict[str, Tensor], dtype: str = "float32", block: int = 2) -> Path:
    """A store as its format describes it, unchecked, without the importer."""
    root.mkdir(parents=True)
    meta = StoreMeta("three", SPECS, len(data["task"]), dtype, block=block)
    rows = meta.row_format.join(data["obs"], data["action"], data["reward"]).numpy()
    arrays = {"rows.npy": (rows, meta.row_format.record, rows.shape[:2])}
    task = data["task"][:, 0].numpy().astype("<i4")
    arrays["task.npy"] = (task, task.dtype, task.shape)
    files = {}
    for name, (values, dtype_, shape) in arrays.items():
        content = header(shape, dtype_) + values.tobytes()
        (root / name).write_bytes(content)
        sums = [hashlib.sha256(values[i : i + block].tobytes()).hexdigest() for i in range(0, len(values), block)]
        files[name] = StoreFile(len(content), tuple(sums))
    (root / "meta.json").write_text(StoreMeta(**{**meta.__dict__, "files": files}).to_json())
    return root


def write(root: Path, form: str, data: dict[str, Tensor]) -> Path:
    return write_chunks(root, data) if form == "chunks" else write_store(root, data)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in an empty directory: exit code, standard output, standard error."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return command


def facts_of(run: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, Any]:
    code, out, _ = run("inspect", *arguments, "--json", "--no-figure")
    assert code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(out, parse_constant=refuse)


# -- inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 2, 256])
def test_inspect_measures_what_is_there(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, form: str, block: int
) -> None:
    monkeypatch.setattr(audit, "_BLOCK", block)
    data = episodes()
    facts = facts_of(run, write(tmp_path / "d", form, data))
    assert facts["form"] == {"chunks": "chunk files", "store": "episode store"}[form]
    assert (facts["task"], facts["dtype"]) == ("three", "float32")
    assert (facts["episodes"], facts["rows"], facts["episode_length"]) == (9, 9 * (L + 1), L)
    assert (facts["obs_dim"], facts["action_dim"]) == (4, 2)
    kept = {"chunks": ("chunk_*.pt",), "store": ("*.npy", "meta.json")}[form]
    assert facts["bytes"] == sum(path.stat().st_size for pattern in kept for path in (tmp_path / "d").glob(pattern))
    if form == "chunks":
        assert [file["episodes"] for file in facts["files"]] == [4, 5]
    memory = facts["memory"]
    assert memory["float32"]["bytes"] == 9 * ((L + 1) * 4 * 7 + 8)
    assert memory["float16"]["bytes"] == 9 * ((L + 1) * (2 * 6 + 4) + 8)
    assert memory["float32"]["auto"] in memory["float32"]["fits"]  # so little fits everywhere

    assert [task["name"] for task in facts["tasks"]] == [spec.name for spec in SPECS]
    assert [task["episodes"] for task in facts["tasks"]] == [5, 4, 0]
    assert facts["tasks"][2]["return"] is None
    assert facts["tasks"][2]["obs"] is None
    for index in (0, 1):
        own = [i for i, task in enumerate(TASKS) if task == index]
        returns = [sum(data["reward"][i, 1:].tolist()) for i in own]
        expected = {"mean": np.mean(returns), "min": min(returns), "max": max(returns), "median": np.median(returns)}
        expected |= {"p10": np.quantile(returns, 0.1), "p90": np.quantile(returns, 0.9)}
        assert facts["tasks"][index]["return"] == pytest.approx(expected, rel=1e-9)
        obs = data["obs"][own][..., : SPECS[index].obs_dim]
        action = data["action"][own][:, 1:, : SPECS[index].action_dim]
        assert facts["tasks"][index]["obs"] == [obs.min().item(), obs.max().item()]
        assert facts["tasks"][index]["action"] == [action.min().item(), action.max().item()]
        reward = data["reward"][own][:, 1:]
        assert facts["tasks"][index]["reward"] == [reward.min().item(), reward.max().item()]
    assert facts["ranges"]["obs"] == [data["obs"].min().item(), data["obs"].max().item()]
    assert facts["audited_episodes"] == 9
    assert facts["filler_not_nan"] == 0
    assert {name for name, finding in facts["findings"].items() if finding["values"]} == set()


@pytest.mark.parametrize("form", FORMS)
def test_inspect_finds_what_is_wrong_and_says_where(tmp_path: Path, run: Any, form: str) -> None:
    data = episodes()
    smallest = data["obs"].min().item()
    data["obs"][6, 3, 1] = torch.nan
    data["obs"][8, 0, 0] = -torch.inf
    data["reward"][5, 2] = torch.inf
    data["action"][7, 4, 0] = -1.5
    data["action"][7, 5, 0] = 1.25
    data["action"][3, 1, 1] = torch.nan
    data["action"][2, 2, 1] = 0.5  # task 1 has one action
    data["obs"][0, 1, 3] = 1e-30  # task 0 has three observations
    data["action"][1, 0] = 7.0  # filler, harmless
    facts = facts_of(run, write(tmp_path / "d", form, data))
    findings = {name: (f["values"], f["episodes"], f["first"]) for name, f in facts["findings"].items()}
    where = (lambda i: f"chunk_{int(i >= 4)}.pt, episode {i - 4 * (i >= 4)}") if form == "chunks" else (
        lambda i: f"rows.npy, episode {i}"
    )  # fmt: skip
    assert findings == {
        "obs not finite": (2, 2, f"{where(6)}, row 3: obs[1] is nan"),
        "action not finite": (1, 1, f"{where(3)}, row 1: action[1] is nan"),
        "reward not finite": (1, 1, f"{where(5)}, row 2: reward is inf"),
        "action outside [-1, 1]": (2, 1, f"{where(7)}, row 4: action[0] is -1.5"),
        "obs padding not zero": (1, 1, f"{where(0)}, row 1: obs[3] is 1e-30"),
        "action padding not zero": (1, 1, f"{where(2)}, row 2: action[1] is 0.5"),
    }
    assert facts["filler_not_nan"] == 1
    assert facts["ranges"]["action"] == [-1.5, 1.25]
    assert facts["ranges"]["obs"][0] == smallest  # of the finite values
    assert facts["ranges"]["reward"][1] < 1
    returns = [sum(data["reward"][i, 1:].tolist()) for i in (0, 1, 3, 6)]  # without episode 5
    assert facts["tasks"][0]["return"]["mean"] == pytest.approx(np.mean(returns))
    code, out, _ = run("inspect", tmp_path / "d", "--no-figure")
    assert code == 0
    assert f"obs not finite            2 in 2 episodes; first: {where(6)}, row 3: obs[1] is nan\n" in out
    assert "row 0 not NaN             1 episodes" in out


def test_inspect_of_a_float16_store(tmp_path: Path, run: Any) -> None:
    data = episodes()
    facts = facts_of(run, write_store(tmp_path / "d", data, "float16"))
    assert facts["dtype"] == "float16"
    assert facts["ranges"]["obs"] == [data["obs"].half().min().item(), data["obs"].half().max().item()]
    assert facts["tasks"][1]["return"]["min"] == pytest.approx(data["reward"][[2, 4, 7, 8], 1:].sum(1).min().item())


def test_inspect_without_a_record_of_collecting_takes_mt30(tmp_path: Path, run: Any) -> None:
    shape = (2, 501)
    action, reward = torch.zeros(*shape, 6), torch.ones(shape)
    action[:, 0] = reward[:, 0] = torch.nan
    write_chunk(tmp_path / "d" / "chunk_0.pt", torch.zeros(*shape, 24), action, reward, torch.tensor([1, 6]))
    code, out, _ = run("inspect", tmp_path / "d", "--no-figure")
    assert code == 0
    assert "task set              mt30, 30 tasks\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["6", "acrobot-swingup", "1", *["500.0"] * 6] in lines
    assert ["0", "walker-stand", "0", *["-"] * 6] in lines
    chunks = write_chunks(tmp_path / "three", episodes())
    (chunks / "collect.json").unlink()
    hint = "No collect.json names it: mt30 was assumed, name another one with --task"
    for command in (("inspect", chunks, "--no-figure"), ("verify", chunks), ("convert", chunks, tmp_path / "out")):
        code, out, error = run(*command)
        assert code in (1, 2)
        assert hint in out + error
    code, _, error = run("inspect", tmp_path / "d", "--task", "mt80", "--no-figure")
    assert (code, error.count("\n")) == (2, 1)
    assert "Is it data of another task?" in error


@pytest.mark.parametrize("form", FORMS)
def test_quick_takes_a_sample_and_says_so(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(cli, "SAMPLE", 4)
    data = episodes()
    root = write(tmp_path / "d", form, data)
    facts = facts_of(run, root, "--quick")
    drawn = [0, 2, 4, 6]  # evenly spaced
    assert (facts["audited_episodes"], facts["episodes"]) == (4, 9)
    assert [task["episodes"] for task in facts["tasks"]] == [5, 4, 0]
    assert facts["ranges"]["reward"] == [f(data["reward"][drawn, 1:]).item() for f in (torch.min, torch.max)]
    assert facts["tasks"][1]["return"]["max"] == pytest.approx(data["reward"][[2, 4], 1:].sum(1).max().item())
    _, out, _ = run("inspect", root, "--quick", "--no-figure")
    assert "returns of a sample of 4 evenly spaced episodes\n" in out


@pytest.mark.parametrize(
    ("gpu", "ram", "words"),
    [
        (10**6, 10**6, "GPU memory. The rule: "),
        (100, 10**6, "RAM. The rule: "),
        (100, 100, "disk (chunk files are imported into a store for that). The rule: "),
    ],
)
def test_where_training_would_put_the_episodes(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, gpu: int, ram: int, words: str
) -> None:
    def available_memory(device: torch.device) -> int:
        return gpu if device.type == "cuda" else ram

    monkeypatch.setattr(audit, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(audit, "available_memory", available_memory)
    monkeypatch.setattr(placement, "available_memory", available_memory)
    root = write_chunks(tmp_path / "d", episodes())
    facts = facts_of(run, root)
    expected = [place for place, free in (("cpu", ram), ("cuda", gpu)) if free == 10**6]
    assert facts["memory"]["float32"]["fits"] == expected
    _, out, _ = run("inspect", root, "--no-figure")
    assert f"data_device=auto      {words}" in out
    assert f"{'fits' if gpu == 10**6 else 'does not fit'} into the GPU memory free now" in out


def test_figure(tmp_path: Path, run: Any) -> None:
    root = write_chunks(tmp_path / "recorded", episodes())
    before = sorted(path.name for path in root.iterdir())
    code, out, _ = run("inspect", root)
    assert code == 0
    assert out.endswith("histograms of the returns: recorded_returns.png\n")
    assert (tmp_path / "here" / "recorded_returns.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert run("inspect", root, "--figure", tmp_path / "new" / "x.png")[0] == 0
    assert (tmp_path / "new" / "x.png").stat().st_size > 5000
    assert sorted(path.name for path in root.iterdir()) == before
    code, out, error = run("inspect", root, "--figure", root / "chunk_0.pt")
    assert (code, out) == (2, "")
    assert "must end in .png" in error


def test_figure_without_matplotlib(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_store(tmp_path / "d", episodes())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, error = run("inspect", root)
    assert code == 0
    assert "No histograms: figures need matplotlib: pip install 'tdmpc2-opt[figures]'\n" in error
    assert "values of 9 episodes\n" in out
    assert not list((tmp_path / "here").iterdir())


# -- verify -----------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    """Change one bit; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def problems_of(run: Any, *arguments: object) -> list[str]:
    code, out, _ = run("verify", *arguments)
    assert code == 1
    *problems, last = out.splitlines()
    assert last.endswith(f": {len(problems)} problem{'s' * (len(problems) > 1)}")
    return problems


@pytest.mark.parametrize("piece", [1, 256])
def test_good_data(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(verify, "_EPISODES", piece)
    chunks = write_chunks(tmp_path / "chunks", episodes())
    assert run("verify", chunks)[:2] == (0, "2 files, 9 episodes: good\n")
    assert run("verify", write_store(tmp_path / "own", episodes()))[:2] == (0, "3 files, 9 episodes: good\n")
    for dtype in ("float32", "float16"):
        import_episodes([chunks], tmp_path / dtype, "three", SPECS, dtype=dtype, block=2, quiet=True)
        assert run("verify", tmp_path / dtype)[:2] == (0, "3 files, 9 episodes: good\n")


def test_every_damaged_block_of_a_store_is_listed(tmp_path: Path, run: Any) -> None:
    root = write_store(tmp_path / "d", episodes())
    meta = StoreMeta.read(root / "meta.json")
    start = meta.files["rows.npy"].bytes - 9 * meta.episode_bytes
    flip(root / "rows.npy", start + 3 * meta.episode_bytes + 5)
    flip(root / "rows.npy", start + 8 * meta.episode_bytes)
    flip(root / "task.npy", -1)
    first, second, third = problems_of(run, root)
    found = hashlib.sha256((root / "rows.npy").read_bytes()[start:][2 * meta.episode_bytes :][: 2 * meta.episode_bytes])
    recorded = meta.files["rows.npy"].sha256[1]
    expected = f"checksum {found.hexdigest()[:16]} instead of {recorded[:16]}"
    assert first == f"{root / 'rows.npy'}, episodes 2-3: {expected}"
    assert second.startswith(f"{root / 'rows.npy'}, episodes 8-8: checksum ")
    assert third.startswith(f"{root / 'task.npy'}, episodes 8-8: checksum ")


def test_a_truncated_store_and_damage_before_its_end(tmp_path: Path, run: Any) -> None:
    root = write_store(tmp_path / "d", episodes())
    episode = StoreMeta.read(root / "meta.json").episode_bytes
    content = (root / "rows.npy").read_bytes()
    (root / "rows.npy").write_bytes(content[: -episode - 1])
    flip(root / "rows.npy", len(content) - 7 * episode)
    size, damaged, cut, missing = (problem.removeprefix(str(root / "rows.npy")) for problem in problems_of(run, root))
    assert size == f" has {len(content) - episode - 1:,} bytes instead of {len(content):,}"
    assert damaged.startswith(", episodes 2-3: checksum ")
    assert cut == ", episodes 6-7: the file ends before their end"
    assert missing == ", episodes 8-8: the file ends before their end"


@pytest.mark.parametrize("damage", ["header", "json", "checksums", "gone"])
def test_other_damage_of_a_store(tmp_path: Path, run: Any, damage: str) -> None:
    root = write_store(tmp_path / "d", episodes())
    if damage == "header":
        flip(root / "rows.npy", 20)
        message = "rows.npy has a header that does not fit meta.json"
    elif damage == "json":
        (root / "meta.json").write_text("{")
        message = "meta.json is damaged"
    elif damage == "checksums":
        plain = json.loads((root / "meta.json").read_text())
        plain["files"]["rows.npy"]["sha256"].pop()
        (root / "meta.json").write_text(json.dumps(plain))
        message = "meta.json is damaged"
    else:
        (root / "rows.npy").unlink()
        message = "rows.npy cannot be read"
    (problem,) = problems_of(run, root)
    assert message in problem


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_that_were_written_wrong(tmp_path: Path, run: Any, dtype: str) -> None:
    data = episodes()
    data["reward"][5, 2] = torch.nan
    data["obs"][8, 0, 0] = torch.inf
    first, second = problems_of(run, write_store(tmp_path / "d", data, dtype))
    assert "rows.npy: reward is nan in episode 5, row 2." in first
    assert first.endswith("(episodes 4-5 are as they were written)")
    assert "rows.npy: obs is inf in episode 8, row 0." in second


def test_every_damaged_chunk_file_is_listed(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_EPISODES", 1)
    data = episodes()
    data["obs"][3, 2, 1] = torch.nan
    data["reward"][4, 6] = torch.inf
    data["task"][6, 3] = 2
    root = write_chunks(tmp_path / "d", data, (1, 1, 3, 2, 2))
    stored = (root / "chunk_0.pt").read_bytes()
    flip(root / "chunk_0.pt", stored.index(data["obs"][0].numpy().tobytes()) + 9)
    (root / "chunk_1.pt").write_bytes((root / "chunk_1.pt").read_bytes()[:-300])
    flipped, truncated, wrong, changes = problems_of(run, root)
    assert "chunk_0.pt, record " in flipped
    assert "Bad CRC-32" in flipped
    assert "chunk_1.pt (" in truncated
    assert "chunk_2.pt: obs is nan in episode 1, row 2." in wrong
    assert wrong.endswith("Episodes of the file with values that are not finite: 2")
    assert "chunk_3.pt: the task id changes in episode 1, row 3." in changes
    assert run("verify", root)[1].splitlines()[-1].startswith("5 files, 8 episodes")


def test_a_store_beside_chunk_files_and_teachers_targets_are_checked(tmp_path: Path, run: Any) -> None:
    root = write_chunks(tmp_path / "d", episodes())
    store = import_episodes([root], root / "store", "three", SPECS, quiet=True)
    open_targets(store, "ab" * 32, "teacher.pt").values[4, 3] = 1.0
    assert run("verify", root)[:2] == (0, "7 files, 9 episodes: good\n")
    open_targets(store, "ab" * 32, "teacher.pt").values[4, 3] = torch.inf
    (problem,) = problems_of(run, root)
    assert "reward.npy holds inf in episode 4, row 3" in problem
    flip(root / "store" / "rows.npy", -1)
    (problem,) = problems_of(run, root)
    assert "rows.npy, episodes 0-8: checksum" in problem
    flip(root / "store" / "rows.npy", -1)
    open_targets(store, "ab" * 32, "teacher.pt").values[4, 3] = 1.0
    write_chunk(root / "chunk_2.pt", **episodes([0, 1], seed=5))
    (problem,) = problems_of(run, root)
    assert "store was not made of the chunk files that are beside it now" in problem
    assert run("verify", root)[1].endswith("8 files, 11 episodes: 1 problem\n")


# -- convert ----------------------------------------------------------------------------------------------------------


def test_convert_merges_thins_out_and_compacts(tmp_path: Path, run: Any) -> None:
    one = write_chunks(tmp_path / "one", episodes(seed=1))
    two = write_store(tmp_path / "two", episodes([1, 2, 0], seed=2))
    code, out, _ = run("convert", one, two, tmp_path / "all")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'all'}: episode store, float32, 12 episodes, ")
    merged = EpisodeStore.open(tmp_path / "all")
    assert merged.task.tolist() == [*TASKS, 1, 2, 0]
    reward = merged.meta.row_format.split(merged.rows)[2]
    assert torch.equal(reward[:9, 1:], episodes(seed=1)["reward"][:, 1:])
    assert torch.equal(reward[9:, 1:], episodes([1, 2, 0], seed=2)["reward"][:, 1:])
    options = ("--tasks", f"{SPECS[1].name}, {SPECS[0].name}", "--max-episodes-per-task", 2, "--dtype", "float16")
    assert run("convert", tmp_path / "all", tmp_path / "few", *options)[0] == 0
    few = EpisodeStore.open(tmp_path / "few")
    assert few.task.tolist() == [0, 1, 0, 1]
    assert few.meta.dtype == "float16"
    assert few.meta.tasks == SPECS
    assert run("convert", tmp_path / "few", tmp_path / "copy")[0] == 0
    assert EpisodeStore.open(tmp_path / "copy").checksum == few.checksum  # precision stays unless asked
    assert run("verify", tmp_path / "copy")[0] == 0


def test_convert_back_to_chunk_files(tmp_path: Path, run: Any) -> None:
    data = episodes()
    store = write_store(tmp_path / "store", data)
    code, out, _ = run("convert", store, tmp_path / "chunks", "--to", "chunks", "--episodes-per-file", 4)
    assert code == 0
    assert out.splitlines()[-1] == f"{tmp_path / 'chunks'}: 3 chunk files"
    chunks = [read_chunk(tmp_path / "chunks" / f"chunk_{number}.pt") for number in range(3)]
    assert [len(chunk["task"]) for chunk in chunks] == [4, 4, 1]
    for name, values in data.items():
        assert torch.equal(torch.cat([chunk[name] for chunk in chunks]).nan_to_num(9), values.nan_to_num(9))


def test_convert_refusals(tmp_path: Path, run: Any) -> None:
    chunks = write_chunks(tmp_path / "chunks", episodes())
    store = write_store(tmp_path / "store", episodes())
    other = write_chunks(tmp_path / "other", episodes())
    record = json.loads((other / "collect.json").read_text())
    record["tasks"][0]["name"], record["task"] = "renamed", "else"
    (other / "collect.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    for arguments, message in (
        ((chunks, store, "--tasks", "tree-two"), "'tree-two' is not a task of three. Did you mean 'three-two'?"),
        ((chunks, other), f"{chunks} is of task=three, {other} of else: merge data of one task set"),
        ((store, "--task", "mt30"), "is an episode store of task=three, not of mt30"),
        ((chunks, "--to", "chunks"), "--to chunks writes one whole episode store"),
        ((store, "--to", "chunks", "--tasks", "three-two"), "--to chunks writes one whole episode store"),
        ((store, "--episodes-per-file", "3"), "--episodes-per-file is for --to chunks"),
        ((tmp_path / "nowhere",), "nowhere is not a directory: expected an episode store"),
    ):
        code, _, error = run("convert", *arguments[:1], *(a for a in arguments[1:] if isinstance(a, Path)), out,
                             *(a for a in arguments[1:] if not isinstance(a, Path)))  # fmt: skip
        assert code == 2
        assert error.startswith("error: ")
        assert message in error
        assert not out.exists()
    before = (store / "rows.npy").read_bytes()
    code, _, error = run("convert", chunks, store)
    assert code == 2
    assert "exists" in error
    assert (store / "rows.npy").read_bytes() == before
    assert run("convert", chunks, out, "--max-episodes-per-task", "0")[0] == 2


# -- errors of use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_neither_form(tmp_path: Path, run: Any, command: str) -> None:
    code, out, error = run(command, tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "holds neither form of data: expected an episode store (meta.json, rows.npy, task.npy) or chunk" in error
    code, _, error = run(command, tmp_path / "nowhere")
    assert (code, error.count("\n")) == (2, 1)
    assert "is not a directory" in error


def test_damaged_record_of_collecting(tmp_path: Path, run: Any) -> None:
    root = write_chunks(tmp_path / "d", episodes())
    for text, reason in (('{"task": "three"}', "KeyError: 'tasks'"), ('{"task": "t", "tasks": []}', "ValueError: ")):
        (root / "collect.json").write_text(text)
        for command in ("inspect", "verify"):
            code, _, error = run(command, root)
            assert (code, error.count("\n")) == (2, 1)
            assert f"collect.json is damaged [{reason}" in error
            assert "name the task set with --task" in error
    code, _, error = run("verify", root, "--task", "mt31")
    assert code == 2
    assert "Did you mean" in error


def test_store_in_a_directory_without_chunk_files(tmp_path: Path, run: Any) -> None:
    write_store(tmp_path / "d" / "store", episodes())
    assert facts_of(run, tmp_path / "d")["path"] == str(tmp_path / "d" / "store")
    assert source.open_source(tmp_path / "d").task_ids.tolist() == TASKS
    assert len(source.open_source(tmp_path / "d").specs) == len(ALL)


def test_as_a_command(tmp_path: Path) -> None:
    root = write_store(tmp_path / "d", episodes())
    flip(root / "rows.npy", -1)
    command = [sys.executable, "-m", "tdmpc2.data", "verify", str(root)]
    child = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stdout.splitlines()[-1] == "3 files, 9 episodes: 1 problem"
    assert "Verifying: done" in child.stderr
    assert "Traceback" not in child.stderr
