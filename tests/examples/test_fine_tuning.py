"""The comparison of fine-tuning with the original file and with a run from scratch, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.online import SMALL
from tests.helpers.scripts import load_script
from tests.helpers.toy_envs import STANDS
from tests.helpers.tuning import BASE, file_of_many

FILE = Path(__file__).resolve().parents[2] / "examples" / "fine_tuning.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script(FILE)


def command(directory: Path, *words: str) -> list[str]:
    keys = {**BASE, "seed_steps": 14, "eval_freq": 11, "eval_episodes": 2}
    del keys["steps"]
    options = ["--task", STANDS, "--steps", "22", "--episodes", "3", "--out", str(directory / "out")]
    return [str(file_of_many(directory)), *options, *words, *(f"{key}={value}" for key, value in keys.items())]


def test_fine_tuning_is_compared_with_before_and_from_scratch(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example writes a table, every return and a figure; run again, it trains nothing and prints the same."""
    words = command(tmp_path, "--seeds", "1,2")
    example.main(words)
    out = tmp_path / "out"
    found = json.loads((out / "fine_tuning.json").read_text())
    assert {name: [len(run) for run in runs] for name, runs in found["returns"].items()} == {
        "before": [3], "fine-tuned": [3, 3], "from scratch": [3, 3],
    }  # fmt: skip
    before, tuned, scratch = found["rows"]
    assert tuned["tuned_minus"] is None
    assert before["tuned_minus"] == pytest.approx(tuned["mean"] - before["mean"])
    assert scratch["tuned_minus_interval"] is not None
    lines = (out / "fine_tuning.md").read_text().splitlines()
    assert lines[0] == f"many.pt, {STANDS}, 22 agent steps, seeds 1, 2"
    assert [line.split(" | ")[0].strip("| ") for line in lines[4:]] == ["before", "fine-tuned", "from scratch"]
    assert (out / "fine_tuning.png").stat().st_size > 5000
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        "fine-tuned-1", "fine-tuned-2", "from_scratch-1", "from_scratch-2",
    }  # fmt: skip
    table = capsys.readouterr().out.strip().splitlines()[-5:]
    example.main(words)
    again = capsys.readouterr().out
    assert again.count("is already trained for 22 steps") == 4
    assert again.strip().splitlines()[-5:] == table


def test_run_from_scratch_has_the_sizes_of_the_file_and_one_task(example: ModuleType, tmp_path: Path) -> None:
    keys = {key: value for key, value in BASE.items() if key != "steps"}
    cfg = example.configure("from scratch", file_of_many(tmp_path), STANDS, 40, 3, tmp_path, keys)
    assert (cfg.task, cfg.seed, cfg.checkpoint, cfg.multitask) == (STANDS, 3, None, False)
    assert (cfg.latent_dim, cfg.num_q, cfg.enc_dim) == (24, 3, SMALL["enc_dim"])


def test_run_from_scratch_takes_no_keys_about_parts_of_the_file(example: ModuleType, tmp_path: Path) -> None:
    typed = {**BASE, "reset": ["Q"], "freeze": ["encoder"]}
    del typed["steps"]
    file, kinds = file_of_many(tmp_path), (example.TUNED, example.SCRATCH)
    found = [example.configure(kind, file, STANDS, 22, 1, tmp_path, typed) for kind in kinds]
    assert [(cfg.reset, cfg.freeze) for cfg in found] == [(("Q",), ("encoder",)), ((), ())]


def test_word_that_is_no_key_is_named(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["x.pt", "steps"])
    assert "steps is no key of train.py: write KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["steps=200", "task=walker-run", "seed=9", "work_dir=x"])
def test_key_that_an_option_gives_is_refused(
    example: ModuleType, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """The table said 10,000 steps of a run of 200."""
    with pytest.raises(SystemExit):
        example.main(["x.pt", word])
    assert f"{word.partition('=')[0]}= is given by --" in capsys.readouterr().err
