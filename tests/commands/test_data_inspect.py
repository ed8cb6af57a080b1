"""``tdmpc2 data inspect`` measures both forms of data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.data import placement, source
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.tools import audit, overview
from tests.helpers.data import ALL, SPECS, L
from tests.helpers.data_command import FORMS, TASKS, episodes, facts_of, flip, write, write_chunks, write_store
from tests.helpers.reference import REPO

# -- inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_inspect_says_what_the_data_are(tmp_path: Path, run_data: Any, form: str) -> None:
    facts = facts_of(run_data, write(tmp_path / "d", form, episodes()))
    assert facts["form"] == {"chunks": "chunk files", "store": "episode store"}[form]
    assert (facts["task"], facts["dtype"]) == ("three", "float32")
    assert (facts["episodes"], facts["rows"], facts["episode_length"]) == (9, 9 * (L + 1), L)
    assert (facts["obs_dim"], facts["action_dim"]) == (4, 2)
    assert [task["name"] for task in facts["tasks"]] == [spec.name for spec in SPECS]
    assert [task["episodes"] for task in facts["tasks"]] == [5, 4, 0]


@pytest.mark.parametrize("form", FORMS)
def test_inspect_says_what_the_data_take_on_disk_and_in_memory(tmp_path: Path, run_data: Any, form: str) -> None:
    facts = facts_of(run_data, write(tmp_path / "d", form, episodes()))
    kept = {"chunks": ("chunk_*.pt",), "store": ("*.npy", "meta.json")}[form]
    assert facts["bytes"] == sum(path.stat().st_size for pattern in kept for path in (tmp_path / "d").glob(pattern))
    if form == "chunks":
        assert [file["episodes"] for file in facts["files"]] == [4, 5]
    memory = facts["memory"]
    assert memory["float32"]["bytes"] == 9 * ((L + 1) * 4 * 7 + 8)
    assert memory["float16"]["bytes"] == 9 * ((L + 1) * (2 * 6 + 4) + 8)
    assert memory["float32"]["auto"] in memory["float32"]["fits"]  # so little data fit everywhere


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 2, 256])
def test_inspect_of_episodes_measures_them_task_by_task(
    tmp_path: Path, run_data: Any, monkeypatch: pytest.MonkeyPatch, form: str, block: int
) -> None:
    """Measurements do not depend on how many episodes are read at a time."""
    monkeypatch.setattr(audit, "_BLOCK", block)
    data = episodes()
    facts = facts_of(run_data, write(tmp_path / "d", form, data))
    for index in (0, 1):
        own = [i for i, task in enumerate(TASKS) if task == index]
        returns = [sum(data["reward"][i, 1:].tolist()) for i in own]
        expected = {"mean": np.mean(returns), "min": min(returns), "max": max(returns), "median": np.median(returns)}
        expected |= {"p10": np.quantile(returns, 0.1), "p90": np.quantile(returns, 0.9)}
        assert facts["tasks"][index]["return"] == pytest.approx(expected, rel=1e-9)
        ranges = {
            "obs": data["obs"][own][..., : SPECS[index].obs_dim],
            "action": data["action"][own][:, 1:, : SPECS[index].action_dim],
            "reward": data["reward"][own][:, 1:],
        }
        for name, values in ranges.items():
            assert facts["tasks"][index][name] == [values.min().item(), values.max().item()]
    assert (facts["tasks"][2]["return"], facts["tasks"][2]["obs"]) == (None, None)
    assert facts["ranges"]["obs"] == [data["obs"].min().item(), data["obs"].max().item()]


@pytest.mark.parametrize("form", FORMS)
def test_inspect_of_good_episodes_finds_nothing(tmp_path: Path, run_data: Any, form: str) -> None:
    facts = facts_of(run_data, write(tmp_path / "d", form, episodes()))
    assert (facts["audited_episodes"], facts["filler_not_nan"]) == (9, 0)
    assert {name for name, finding in facts["findings"].items() if finding["values"]} == set()


@pytest.mark.parametrize("form", FORMS)
def test_inspect_of_bad_values_says_where(tmp_path: Path, run_data: Any, form: str) -> None:
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
    data["action"][1, 0] = 7.0  # row 0 is filler
    facts = facts_of(run_data, write(tmp_path / "d", form, data))
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
    code, out, _ = run_data("inspect", tmp_path / "d")
    assert code == 0
    assert f"obs not finite            2 in 2 episodes; first: {where(6)}, row 3: obs[1] is nan\n" in out
    assert "row 0 not NaN             1 episodes" in out


def test_inspect_of_float16_store_says_its_dtype(tmp_path: Path, run_data: Any) -> None:
    data = episodes()
    facts = facts_of(run_data, write_store(tmp_path / "d", data, "float16"))
    assert facts["dtype"] == "float16"
    assert facts["ranges"]["obs"] == [data["obs"].half().min().item(), data["obs"].half().max().item()]
    assert facts["tasks"][1]["return"]["min"] == pytest.approx(data["reward"][[2, 4, 7, 8], 1:].sum(1).min().item())


def test_inspect_without_record_takes_mt30(tmp_path: Path, run_data: Any) -> None:
    shape = (2, 501)
    action, reward = torch.zeros(*shape, 6), torch.ones(shape)
    action[:, 0] = reward[:, 0] = torch.nan
    write_chunk(tmp_path / "d" / "chunk_0.pt", torch.zeros(*shape, 24), action, reward, torch.tensor([1, 6]))
    code, out, _ = run_data("inspect", tmp_path / "d")
    assert code == 0
    assert "task set              mt30, 30 tasks\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["6", "acrobot-swingup", "1", *["500.0"] * 6] in lines
    chunks = write_chunks(tmp_path / "three", episodes())
    (chunks / "collect.json").unlink()
    hint = "No collect.json names it: mt30 was assumed, name another one with --task"
    for command in (("inspect", chunks), ("verify", chunks), ("convert", chunks, tmp_path / "out")):
        code, out, error = run_data(*command)
        assert code in (1, 2)
        assert hint in out + error
    code, _, error = run_data("inspect", tmp_path / "d", "--task", "mt80")
    assert (code, error.count("\n")) == (2, 1)
    assert "Is it data of another task?" in error


@pytest.mark.parametrize("form", FORMS)
def test_inspect_quick_takes_a_sample_and_says_so(
    tmp_path: Path, run_data: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(overview, "SAMPLE", 4)
    data = episodes()
    root = write(tmp_path / "d", form, data)
    facts = facts_of(run_data, root, "--quick")
    drawn = [0, 2, 4, 6]  # evenly spaced
    assert (facts["audited_episodes"], facts["episodes"]) == (4, 9)
    assert [task["episodes"] for task in facts["tasks"]] == [5, 4, 0]
    assert facts["ranges"]["reward"] == [f(data["reward"][drawn, 1:]).item() for f in (torch.min, torch.max)]
    assert facts["tasks"][1]["return"]["max"] == pytest.approx(data["reward"][[2, 4], 1:].sum(1).max().item())
    _, out, _ = run_data("inspect", root, "--quick")
    assert "returns of a sample of 4 evenly spaced episodes\n" in out


@pytest.mark.parametrize(
    ("gpu", "ram", "words"),
    [
        (10**6, 10**6, "GPU memory. The rule: "),
        (100, 10**6, "RAM. The rule: "),
        (100, 100, "disk (chunk files are imported into a store for that). The rule: "),
    ],
)
def test_inspect_says_where_training_would_put_episodes(
    tmp_path: Path, run_data: Any, monkeypatch: pytest.MonkeyPatch, gpu: int, ram: int, words: str
) -> None:
    def available_memory(device: torch.device) -> int:
        return gpu if device.type == "cuda" else ram

    monkeypatch.setattr(audit, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(audit, "available_memory", available_memory)
    monkeypatch.setattr(placement, "available_memory", available_memory)
    root = write_chunks(tmp_path / "d", episodes())
    facts = facts_of(run_data, root)
    expected = [place for place, free in (("cpu", ram), ("cuda", gpu)) if free == 10**6]
    assert facts["memory"]["float32"]["fits"] == expected
    _, out, _ = run_data("inspect", root)
    assert f"data_device=auto      {words}" in out
    assert f"{'fits' if gpu == 10**6 else 'does not fit'} into the GPU memory free now" in out


def test_inspect_leaves_no_figure_unasked(tmp_path: Path, run_data: Any) -> None:
    """`inspect` used to leave a figure in the working directory."""
    root = write_chunks(tmp_path / "recorded", episodes())
    before = sorted(path.name for path in root.iterdir())
    code, out, _ = run_data("inspect", root)
    assert code == 0
    assert "histograms" not in out
    assert sorted(path.name for path in root.iterdir()) == before
    assert not list((tmp_path / "here").iterdir())


def test_figure_is_drawn_where_it_is_asked_for(tmp_path: Path, run_data: Any) -> None:
    root = write_chunks(tmp_path / "recorded", episodes())
    code, out, _ = run_data("inspect", root, "--figure", "x.png")
    assert code == 0
    assert out.endswith("histograms of the returns: x.png\n")
    assert (tmp_path / "here" / "x.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "here" / "x.png").stat().st_size > 5000


def test_figure_that_is_no_png_is_refused(tmp_path: Path, run_data: Any) -> None:
    root = write_chunks(tmp_path / "recorded", episodes())
    code, out, error = run_data("inspect", root, "--figure", root / "chunk_0.pt")
    assert (code, out) == (2, "")
    assert "must end in .png" in error


def test_tasks_without_episodes_are_counted_not_listed(tmp_path: Path, run_data: Any) -> None:
    """The table of data with two of thirty tasks used to have 28 rows of "0 -"."""
    _, out, _ = run_data("inspect", write_chunks(tmp_path / "d", episodes()))
    names = [line.split()[1] for line in out.splitlines() if line[:3].strip().isdigit()]
    assert names == [SPECS[0].name, SPECS[1].name]
    assert "     1 other task of three without episodes\n" in out


def test_inspect_figure_without_matplotlib_names_the_package(
    tmp_path: Path, run_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_store(tmp_path / "d", episodes())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, error = run_data("inspect", root, "--figure", "x.png")
    assert code == 0
    assert "No histograms: figures need matplotlib: pip install matplotlib\n" in error
    assert "values of 9 episodes\n" in out
    assert not list((tmp_path / "here").iterdir())


# -- errors of use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_data_command_of_directory_without_data_is_refused(tmp_path: Path, run_data: Any, command: str) -> None:
    code, out, error = run_data(command, tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "holds neither form of data: expected an episode store (meta.json, rows.npy, task.npy) or chunk" in error
    code, _, error = run_data(command, tmp_path / "nowhere")
    assert (code, error.count("\n")) == (2, 1)
    assert "is not a directory" in error


def test_inspect_with_damaged_record_is_refused(tmp_path: Path, run_data: Any) -> None:
    root = write_chunks(tmp_path / "d", episodes())
    for text, reason in (('{"task": "three"}', "KeyError: 'tasks'"), ('{"task": "t", "tasks": []}', "ValueError: ")):
        (root / "collect.json").write_text(text)
        for command in ("inspect", "verify"):
            code, _, error = run_data(command, root)
            assert (code, error.count("\n")) == (2, 1)
            assert f"collect.json is damaged [{reason}" in error
            assert "name the task set with --task" in error
    code, _, error = run_data("verify", root, "--task", "mt31")
    assert code == 2
    assert "Did you mean" in error


def test_inspect_of_store_without_chunk_files_reads_it(tmp_path: Path, run_data: Any) -> None:
    write_store(tmp_path / "d" / "store", episodes())
    assert facts_of(run_data, tmp_path / "d")["path"] == str(tmp_path / "d" / "store")
    assert source.open_source(tmp_path / "d").index.task.tolist() == TASKS
    assert len(source.open_source(tmp_path / "d").specs) == len(ALL)


def test_data_command_as_module_runs(tmp_path: Path) -> None:
    root = write_store(tmp_path / "d", episodes())
    flip(root / "rows.npy", -1)
    command = [sys.executable, "-m", "tdmpc2.data", "verify", str(root)]
    child = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stdout.splitlines()[-1] == "3 files, 9 episodes: 1 problem"
    assert "Verifying: done" in child.stderr
    assert "Traceback" not in child.stderr
