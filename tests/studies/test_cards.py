"""The command that writes a card, only from records of the very file, run and data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.checkpoints.files import load_file
from tdmpc2.commands import checkpoint, heldout
from tdmpc2.config import Config, parse_cfg, typed_values
from tdmpc2.play.collector import collect
from tdmpc2.quantization.copies import payload
from tdmpc2.quantization.recipes import RECIPES
from tdmpc2.studies.cards import _of_runs, new_card, with_card
from tdmpc2.studies.runs import Run
from tdmpc2.training.offline import train
from tests.helpers.cards import write_results
from tests.helpers.runs import TASKS, equal


def test_card_command_gathers_run_data_scores_and_trust(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A card is written from what run, evaluations and held-out measurement left, and the weights stay the same."""
    model = train(cfg, None)
    sha256 = load_file(model, identify=True).sha256
    assert sha256 is not None
    planned = write_results(tmp_path / "eval-run", sha256)
    alone = write_results(tmp_path / "eval-run-2", sha256, "policy", 30.0)
    collect(Config(tasks=TASKS, episodes_per_task=1, seed=5), None, tmp_path / "other")
    measured = ["data=" + str(tmp_path / "other"), "batches=1", "batch_size=8", "device=cpu", "write=true"]
    heldout.main([str(model), *measured])
    out = tmp_path / "y.pt"
    words = [
        "card", str(model), f"run={cfg.run_dir}", f"evaluation=[{planned},{alone}]", f"data={cfg.data_dir}",
        f"heldout={cfg.run_dir / 'heldout.json'}", "license=mit", "commit=0123456789", f"out={out}",
    ]  # fmt: skip
    checkpoint.main(words)
    card = load_file(out).card
    assert card is not None
    assert equal(out, model)
    assert (card["steps"], card["start"], card["license"], card["commit"]) == (
        20,
        "random weights",
        "mit",
        "0123456789",
    )
    assert "batch_size=16" in card["command"]
    assert str(tmp_path) not in str(card), "directories of this machine are nobody's business"
    assert card["hours"] > 0
    assert [(data["episodes"], data["tasks"]) for data in card["data"]] == [(6, 2)]
    assert [(one["action"], one["score"], one["plan"]) for one in card["scores"]] == [
        ("planner", 40.0, "3 x 64 samples, horizon 3, mean of the plan"), ("policy", 30.0, "no planning"),
    ]  # fmt: skip
    assert card["trust"]["starts"] == 8
    assert set(card["trust"]["tasks"]) <= set(TASKS)
    assert "score, policy         30.00" in capsys.readouterr().out

    (cfg.run_dir / "state.before.pt").touch()  # what a save leaves that was killed
    (cfg.run_dir / "notes.pt").touch()
    for recipe in ("fp16", "int8"):
        new_card(load_file(payload(load_file(model), RECIPES[recipe])), runs=[cfg.run_dir])
    stranger = train(cfg.replace(seed=cfg.seed + 1, work_dir=str(tmp_path / "stranger")), None)
    with pytest.raises(ValueError, match="stranger: none of its checkpoints has the weights of"):
        new_card(load_file(model, identify=True), runs=[stranger.parent])
    again = new_card(load_file(out, identify=True), evaluations=[planned])
    assert again["scores"][-1]["action"] == "planner"  # an evaluation of the file before it had its card
    assert len(again["scores"]) == 2
    described = load_file(out, identify=True)
    assert described.sha256 not in (None, sha256)
    anew = new_card(described, evaluations=[write_results(tmp_path / "anew", described.sha256, "policy", 31.0)])
    assert [one["score"] for one in anew["scores"]] == [40.0, 31.0]  # and not the old 30 beside it
    copy = load_file(payload(load_file(out), RECIPES["int8"]))
    with pytest.raises(ValueError, match="is of the file with sha256"):
        new_card(copy, evaluations=[planned])


def test_card_of_other_file_run_or_data_is_refused(cfg: Config, tmp_path: Path) -> None:
    model = train(cfg, None)
    file = load_file(model, identify=True)
    with pytest.raises(ValueError, match=r"results\.json is of the file with sha256 ababab.*measure this file"):
        new_card(file, evaluations=[write_results(tmp_path / "eval", "ab" * 32)])
    collect(Config(tasks=TASKS, episodes_per_task=1, seed=9), None, tmp_path / "other")
    with pytest.raises(ValueError, match=r"data=.*other has no episodes that .* was trained on"):
        new_card(file, runs=[cfg.run_dir], data=[str(tmp_path / "other")])
    (tmp_path / "heldout.json").write_text('{"errors": {}, "step": 20}')
    with pytest.raises(ValueError, match=r"heldout\.json: sha256 is missing.*tdmpc2 heldout"):
        new_card(file, heldout=tmp_path / "heldout.json")


def test_card_is_not_written_into_the_file_unasked(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train(cfg, None)
    before = model.read_bytes()
    with pytest.raises(SystemExit):
        checkpoint.main(["card", str(model), "license=mit"])
    assert "out=FILE for a new file, or overwrite=true" in capsys.readouterr().err
    assert model.read_bytes() == before
    checkpoint.main(["card", str(model), "license=mit", "overwrite=true"])
    assert (load_file(model).card or {})["license"] == "mit"
    safetensors = pytest.importorskip("safetensors")
    assert safetensors
    checkpoint.main(["card", str(model), "processor=one core", f"out={tmp_path / 'm.safetensors'}"])
    assert (load_file(tmp_path / "m.safetensors").card or {})["processor"] == "one core"


def test_scores_of_other_plans_and_tasks_stand_beside_each_other(cfg: Config, tmp_path: Path) -> None:
    """An evaluation replaces an older one of its kind, but not one with another start or other tasks."""
    file = load_file(train(cfg, None), identify=True)
    assert file.sha256 is not None
    scores: list[dict[str, Any]] = []
    for number, (start, task) in enumerate([("previous", "a"), ("policy", "a"), ("policy", "b"), ("policy", "b")]):
        path = write_results(tmp_path / str(number), file.sha256, score=float(number)) / "results.json"
        results = json.loads(path.read_text())
        results["protocol"]["config"]["plan_start"] = start
        results["tasks"][0]["task"] = task
        path.write_text(json.dumps(results))
        card = new_card(with_card(file, {"scores": scores}), evaluations=[path])
        scores = card["scores"]
    assert [(one["score"], one["plan"].removeprefix("3 x 64 samples, horizon 3")) for one in scores] == [
        (0.0, ", mean of the plan"),
        (1.0, ", mean of the plan, begun by the policy"),
        (3.0, ", mean of the plan, begun by the policy"),
    ]


def test_command_on_a_card_can_be_typed_again(cfg: Config) -> None:
    """A target with a weight contains a space, so it has to be quoted."""
    targets = ("reward", "policy 0.5")
    run = cfg.replace(distillation_targets=targets, steps=1)
    card = new_card(load_file(train(run, None), identify=True), runs=[run.run_dir])
    assert "distillation_targets=[reward,policy 0.5]" in shlex.split(card["command"])


def test_card_of_run_that_went_on_from_another_has_the_hours_of_both(cfg: Config, tmp_path: Path) -> None:
    """The card of a student of several rounds used to have the hours of the last round only."""
    first = train(cfg, None)
    again = cfg.replace(work_dir=str(tmp_path / "second"), checkpoint=str(first), steps=15)
    second = train(again.replace(teachers={TASKS[0]: str(first)}), None)
    one, both = (
        new_card(load_file(second, identify=True), runs=runs)
        for runs in ([again.run_dir], [cfg.run_dir, again.run_dir])
    )
    assert both["hours"] > one["hours"] > 0
    assert both["steps"] == 35
    assert (one["start"], both["start"]) == ("run/model.pt", "random weights")
    assert both["teachers"] == {TASKS[0]: "run/model.pt"}
    line = both["command"].split("; ")[1]
    assert "checkpoint=run/model.pt" in line
    assert "freeze" not in line, "a key with its usual value"


@pytest.mark.parametrize(
    "keys",
    [
        {"mode": "online", "tasks": ("walker-walk", "walker-run"), "share_body": True, "task_balance": "tasks"},
        {"mode": "online", "tasks": TASKS, "utd": 0.25, "collect_iterations": 2},
        {"mode": "offline", "tasks": TASKS, "ema_decay": 0.999, "value_scale": "per_task"},
        {"mode": "offline", "task": "pendulum-spin", "data_dir": "data/mine"},
        {"mode": "online", "task": "pendulum-spin"},
        {"mode": "offline", "task": "pendulum-spin"},
    ],
)
def test_line_of_a_card_is_the_run_again(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Several tasks that were learned by acting would be learned from stored episodes."""
    run = Config(seed=3, steps=7, **keys)
    line = _of_runs([Run(tmp_path, run.to_dict(), 7, {}, "return", {}, {}, {}, 1.0)])["command"]
    words = shlex.split(line)
    assert words[:2] == ["tdmpc2", "train"]
    taught = ["teacher_config=null"] if run.mode == "offline" else []
    assert words[len(words) - len(taught) :] == taught
    again = parse_cfg(typed_values(dict(word.split("=", 1) for word in words[2 : len(words) - len(taught)])))
    assert again == run.replace(data_dir=None)


def test_line_of_a_card_names_who_taught(tmp_path: Path) -> None:
    """Typed again, the line of a run without a teacher would have had the one of the configuration files."""
    run = Config(seed=3, steps=7, mode="offline", tasks=TASKS)

    def line(cfg: Config, **more: Any) -> str:
        record = {**cfg.to_dict(), **more}
        return str(_of_runs([Run(tmp_path, record, 7, {}, "return", {}, {}, {}, 1.0)])["command"])

    assert line(run, teacher_sha256=None).endswith(" teacher_config=null")
    assert "teacher" not in line(run, teacher_sha256="ab" * 32)
    several = parse_cfg({**run.to_dict(), "teachers": {TASKS[0]: "logs/mine/model.pt"}})
    assert f"teachers={{{TASKS[0]}: mine/model.pt}}" in line(several)


def test_card_of_a_file_of_the_middle_of_a_run_has_its_steps_and_hours(cfg: Config) -> None:
    run = train(cfg.replace(save_freq=10, keep_last=3, save_csv=True), None).parent
    half, whole = (new_card(load_file(run / name, identify=True), runs=[run]) for name in ("model_10.pt", "model.pt"))
    assert (half["steps"], whole["steps"]) == (10, 20)
    assert 0 < half["hours"] <= whole["hours"]
