"""Studies: reading runs, intervals, the control, the report's three files, held-out errors, and a whole small sweep."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from report import main
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.dataset import Batch, EpisodeDataset, SliceSampler
from tdmpc2.nn.math import decode
from tdmpc2.play import evaluation
from tdmpc2.play.collector import collect
from tdmpc2.studies import heldout
from tdmpc2.studies.heldout import heldout_batches, heldout_errors
from tdmpc2.studies.report import difference_interval, markdown, mean_interval, rows_of
from tdmpc2.studies.runs import read_run, read_study
from tdmpc2.training import offline
from tdmpc2.training.offline import train

from .conftest import REPO, TASKS, TINY

PNG = b"\x89PNG\r\n\x1a\n"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_run(
    root: Path, seed: int, score: float | None, *, weight: float | None = None, step: int = 100, **changes: Any
) -> Path:
    """The files that a run leaves behind; without a weight it has no teacher."""
    name = "none" if weight is None else f"weight_{weight}"
    directory = root / str(seed) / "-".join([name, *map(str, changes.values())])
    directory.mkdir(parents=True)
    settings = {"steps": 100, "eval_freq": 50, "seed": seed, "exp_name": directory.name, **changes}
    config = Config(**settings, **({} if weight is None else {"distillation_weight": weight}))
    teacher = None if weight is None else "ab" * 32
    record = {**config.to_dict(), "teacher_sha256": teacher, "data": {"checksum": "c"}}
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "train.csv").write_text(f"step,reward_loss,value_loss\n50,2.0,3.0\n{step},{seed / 2},1.5\n")
    (directory / "speed.csv").write_text("step,seconds,it_per_s\n50,1800.0,1.0\n100,5400.0,1.0\n")
    if score is not None:
        (directory / "evaluations.json").write_text(json.dumps({"50": score + 1, "100": score}))
        (directory / "eval_tasks.csv").write_text(
            f"step,task,episodes,return,success\n50,cup-spin,1,1.0,0\n100,cup-spin,1,{10 * score},0\n"
        )
    return directory


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three weights and no teacher, two seeds each."""
    root = tmp_path / "runs"
    for weight, scores in {None: (10, 14), 0.0: (11, 13), 0.4: (20, 22), 0.9: (9, 12)}.items():
        for seed, score in enumerate(scores, 1):
            write_run(root, seed, score, weight=weight)
    return root


# -- intervals --------------------------------------------------------------------------------------------------------


def test_intervals_by_hand() -> None:
    """t quantiles at 97.5 % from a printed table: 12.706 for one degree of freedom, 4.303 for two, 2.776 for four."""
    assert mean_interval([3.0]) is None
    assert mean_interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)  # s / sqrt(n) is 1
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    # Equal variances and numbers: Welch's degrees of freedom are 2 (n - 1) = 4.
    half = 2.776 * (2 / 3) ** 0.5
    assert difference_interval([11, 12, 13], [1, 2, 3]) == pytest.approx((10 - half, 10 + half), abs=1e-3)
    # The second has no variance: the degrees of freedom are those of the first.
    half = 4.303 / 3**0.5
    assert difference_interval([11, 12, 13], [2, 2]) == pytest.approx((10 - half, 10 + half), abs=1e-3)
    assert difference_interval([1, 1], [2, 2]) == (-1, -1)
    assert difference_interval([1, 2], [2]) is None


# -- groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_named_by_what_differs(sweep: Path) -> None:
    names = ["no teacher", "no teacher (one of weight 0)", "distillation_weight=0.4", "distillation_weight=0.9"]
    rows = rows_of(read_study([sweep]))
    assert [row["name"] for row in rows] == names
    assert [row["is_control"] for row in rows] == [True, False, False, False]
    assert [row["score"] for row in rows] == [12, 12, 21, 10.5]
    assert [row["best"] for row in rows] == [13, 13, 22, 11.5]
    assert [row["minus_control"] for row in rows] == [None, 0, 9, -1.5]
    assert rows[2]["interval"] == pytest.approx((21 - 12.706, 21 + 12.706), abs=1e-3)
    assert rows[2]["minus_control_interval"] == difference_interval([20, 22], [10, 14])
    assert rows[2]["losses"] == {"reward_loss": 0.75, "value_loss": 1.5}
    assert rows[2]["returns"] == {"cup-spin": 210}
    assert rows[2]["hours"] == 2
    assert rows[2]["seeds"] == [1, 2]


def test_weight_0_is_a_control(sweep: Path) -> None:
    for seed in (1, 2):
        shutil.rmtree(sweep / str(seed) / "none")
    control, taught, _ = rows_of(read_study([sweep]))
    assert (control["name"], control["is_control"]) == ("no teacher (one of weight 0)", True)
    assert taught["control"] == control["name"]


def test_a_control_has_the_same_budget(sweep: Path) -> None:
    """Runs of other batch sizes, steps or data are compared with controls of their own."""
    write_run(sweep, 1, 30, weight=0.4, batch_size=64)
    rows = rows_of(read_study([sweep]))
    missing, *others = rows
    assert missing["runs"] == 0
    assert [row["name"] for row in others[-3:]] == [
        "batch_size=64, distillation_weight=0.4",
        "batch_size=256, distillation_weight=0.4",
        "batch_size=256, distillation_weight=0.9",
    ]
    assert [row["control"] for row in others[-3:]] == [None, *["no teacher, batch_size=256"] * 2]
    assert "student_config.batch_size=64 " in missing["command"]


def test_keys_of_one_run_do_not_part_groups(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 10, log_freq=7, wandb_project="p", save_video=True, device="cpu")
    write_run(tmp_path, 2, 12)
    (group,) = read_study([tmp_path]).groups
    assert (group.name, [run.seed for run in group.runs]) == ("no teacher", [1, 2])


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 10)
    write_run(tmp_path, 1, 15, weight=0.4)
    study = read_study([tmp_path])
    rows = rows_of(study)
    assert [(row["interval"], row["minus_control"], row["minus_control_interval"]) for row in rows] == [
        (None, None, None),
        (None, 5, None),
    ]
    assert "| distillation_weight=0.4 | 1 | 100 | 15.00 - | +5.00 - |" in markdown(study, rows, None)


def test_a_repeated_run_does_not_count_twice(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / "1" / "none", tmp_path / "copy")
    study = read_study([sweep, tmp_path / "copy", sweep / "1"])  # a path below another one is read once
    assert [row["runs"] for row in rows_of(study)] == [2, 2, 2, 2]
    (line,) = study.left_out
    assert line.endswith("same settings and seed")


def test_unfinished_runs_are_listed(sweep: Path) -> None:
    write_run(sweep, 3, None, weight=0.4, step=60)
    not_evaluated = write_run(sweep, 4, None, weight=0.4, step=100)
    study = read_study([sweep])
    assert [row["runs"] for row in rows_of(study)] == [2, 2, 2, 2]
    assert {run.path: run.step for run in study.unfinished} == {sweep / "3" / "weight_0.4": 60, not_evaluated: 100}
    assert f"| {sweep / '3' / 'weight_0.4'} | 60 | 100 |" in markdown(study, rows_of(study), None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", '{"seed": 1'),
        ("run.json", "[1]"),
        ("run.json", '{"steps": "many"}'),
        ("evaluations.json", '{"fifty": 1}'),
        ("evaluations.json", '{"50": null}'),
        ("train.csv", "step,reward_loss\n50,many\n"),
        ("train.csv", "reward_loss\n1.0\n"),
        ("eval_tasks.csv", "step,task\n50,cup-spin\n"),
        ("heldout.json", "\x00"),
    ],
)
def test_damaged_files_are_named(sweep: Path, name: str, content: str) -> None:
    path = sweep / "1" / "weight_0.4" / name
    path.write_text(content)
    study = read_study([sweep])
    (line,) = study.left_out
    assert line.startswith(f"{path} is damaged [")
    assert [row["runs"] for row in rows_of(study)] == [2, 2, 1, 2]


# -- the control that is missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["absent", "not evaluated"])
def test_a_missing_control_comes_with_its_command(sweep: Path, control: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        shutil.rmtree(sweep / str(seed) / "weight_0.0")
        if control == "absent":
            shutil.rmtree(sweep / str(seed) / "none")
        else:
            (sweep / str(seed) / "none" / "run.json").write_text(
                (sweep / str(seed) / "none" / "run.json").read_text().replace('"eval_freq": 50', '"eval_freq": 0')
            )
            (sweep / str(seed) / "none" / "evaluations.json").unlink()
    study = read_study([sweep])
    rows = rows_of(study)
    assert rows[0]["command"] == (
        "python train.py --multirun teacher_config=null student_config.steps=100 student_config.eval_freq=50 "
        "student_config.exp_name=control student_config.seed=1,2"
    )
    text = markdown(study, rows, None)
    assert f"| no run without a teacher with the same budget: run `{rows[0]['command']}` | 0 | 100 | - |" in text
    assert all(row["minus_control"] is None for row in rows if row["runs"])


def test_the_command_has_the_same_budget(tmp_path: Path) -> None:
    settings = {
        "tasks": ("cup-spin", "walker-walk"), "model_size": 5, "batch_size": 64, "lr": 1e-7, "mpc": False,
        "data_dir": "my data", "max_episodes_per_task": 3,
    }  # fmt: skip
    write_run(tmp_path, 4, 10, weight=0.4, **settings)
    study = read_study([tmp_path])
    words = shlex.split(rows_of(study)[0]["command"])
    assert words[:3] == ["python", "train.py", "teacher_config=null"]
    assert not any("latent_dim" in word for word in words), "it follows from model_size"
    composed = OmegaConf.from_dotlist(words[3:]).student_config
    typed = parse_cfg(OmegaConf.to_container(composed))  # type: ignore[arg-type]
    record = {**typed.to_dict(), "teacher_sha256": None, "data": {"checksum": "c"}}
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "run.json").write_text(json.dumps(record))
    assert read_run(tmp_path / "control").budget == study.groups[0].runs[0].budget


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_three_files(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    main([str(sweep), "--out", str(out)])
    assert (out / "report.md").read_text() in capsys.readouterr().out
    assert "![Scores](report.png)" in (out / "report.md").read_text()
    assert (out / "report.png").read_bytes().startswith(PNG)
    assert [row["score"] for row in json.loads((out / "report.json").read_text())["groups"]] == [12, 12, 21, 10.5]
    (out / "report.md").write_text("mine")
    with pytest.raises(SystemExit):
        main([str(sweep), "--out", str(out)])
    assert "There is already" in capsys.readouterr().err
    assert (out / "report.md").read_text() == "mine"
    main([str(sweep), "--out", str(out), "--force"])
    assert (out / "report.md").read_text() != "mine"


def test_the_figure_of_a_sweep_is_a_curve(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = pytest.importorskip("matplotlib.axes").Axes
    from tdmpc2.studies.figures import score_figure

    drawn: dict[str, list[Any]] = {"errorbar": [], "barh": [], "axhspan": []}
    for name, calls in drawn.items():
        original = getattr(axes, name)
        monkeypatch.setattr(
            axes, name, lambda *args, _f=original, _c=calls, **kw: (_c.append((args, kw)), _f(*args, **kw))[1]
        )
    rows = rows_of(read_study([sweep]))
    assert score_figure(tmp_path / "curve.png", rows) == ""
    (((_, values, means), options),) = drawn["errorbar"]
    assert (values, means) == ([0.4, 0.9], [21, 10.5])
    assert options["yerr"] == pytest.approx([12.706, 1.5 * 12.706], abs=1e-2)
    assert [call[0][1:] for call in drawn["axhspan"]] == [rows[0]["interval"], rows[1]["interval"]]
    write_run(sweep, 1, 30, weight=0.4, policy_loss="tdmpc2")
    assert score_figure(tmp_path / "bars.png", rows_of(read_study([sweep]))) == ""
    assert len(drawn["barh"]) == 1
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in ((tmp_path, "No run that can be read"), (tmp_path / "none", "does not exist")):
        with pytest.raises(SystemExit):
            main([str(path), "--out", str(tmp_path / "report")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_run_of_train(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formats above are those that training writes."""
    result = evaluation.Evaluation((evaluation.TaskResult(TASKS[0], (1, 2), (100.0, 300.0), (0.0, 0.0), False),))
    monkeypatch.setattr(offline, "evaluate", lambda *_, **__: result)
    train(cfg.replace(eval_freq=10, work_dir=str(cfg.run_dir / "1")), None)
    train(cfg.replace(eval_freq=10, work_dir=str(cfg.run_dir / "2"), seed=2), None)
    (row,) = rows_of(read_study([cfg.run_dir]))
    assert (row["name"], row["seeds"], row["steps"], row["score"]) == ("no teacher", [1, 2], 20, 20.0)
    assert row["returns"] == {TASKS[0]: 200.0}
    assert {"reward_loss", "value_loss"} <= row["losses"].keys()
    assert row["hours"] > 0
    run = read_run(cfg.run_dir / "1")
    assert (run.finished, run.step, run.scores) == (True, 20, {10: 20.0, 20: 20.0})


# -- held-out errors --------------------------------------------------------------------------------------------------


def test_heldout_errors_by_hand(tiny_cfg: Config) -> None:
    agent, teacher = TDMPC2(tiny_cfg.replace(seed=3)), TDMPC2(tiny_cfg.replace(seed=4, enc_dim=24))
    generator = torch.Generator().manual_seed(0)
    for network in (agent, teacher):  # the last layers start at zero
        for param in network.model.parameters():
            param.data += 0.1 * torch.randn(param.shape, generator=generator)
    batches = [
        Batch(
            torch.randn(4, 5, 24, generator=generator),
            torch.rand(3, 5, 6, generator=generator),
            torch.rand(3, 5, 1, generator=generator),
            torch.randint(30, (5,), generator=generator),
        )
        for _ in range(2)
    ]
    sums = dict.fromkeys(("reward", "horizon", "latent", "value"), 0.0)
    with torch.no_grad():
        for obs, action, reward, task, *_ in batches:
            for b in range(5):
                z = agent.model.encode(obs[0, b], task[b])
                values = [
                    decode(m.Q(m.encode(obs[0, b], task[b]), action[0, b], task[b], "all"), m.bins).mean().item()
                    for m in (agent.model, teacher.model)
                ]
                sums["value"] += (values[0] - values[1]) ** 2 / 10
                for t in range(3):
                    error = decode(agent.model.reward(z, action[t, b], task[b]), agent.model.bins) - reward[t, b]
                    sums["reward"] += error.item() ** 2 / 10 if t == 0 else 0
                    sums["horizon"] += error.item() ** 2 / 30
                    z = agent.model.next(z, action[t, b], task[b])
                    truth = agent.model.encode(obs[t + 1, b], task[b])
                    sums["latent"] += (z - truth).square().mean().item() / 30
    errors = heldout_errors(agent, batches, teacher)
    names = {"reward": "reward_rmse", "horizon": "reward_horizon_rmse", "latent": "latent_rmse", "value": "value_rmse"}
    assert {name: errors[names[name]] for name in sums} == pytest.approx(
        {name: total**0.5 for name, total in sums.items()}, rel=1e-4
    )
    assert min(errors.values()) > 1e-3
    assert not any(name.startswith("value") for name in heldout_errors(agent, batches))
    same = heldout_errors(agent, batches, agent)
    assert same["value_rmse"] == same["value_rmse_symlog"] == 0
    with pytest.raises(ValueError, match="No batch"):
        heldout_errors(agent, [])


def test_heldout_batches_are_a_function_of_the_seed() -> None:
    data = EpisodeDataset.of(torch.randn(6, 11, 3), torch.randn(6, 11, 2), torch.randn(6, 11), torch.zeros(6).long())
    first, again, other = (list(heldout_batches(SliceSampler(data), 3, 4, 2, seed)) for seed in (12345, 12345, 12346))
    assert all(torch.equal(a.obs, b.obs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].obs, other[0].obs)
    assert not torch.equal(first[0].obs, first[1].obs)


def test_the_heldout_command(cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(train(cfg, None))
    other = tmp_path / "other"
    collect(Config(tasks=TASKS, episodes_per_task=1, seed=5), None, other)
    options = ["--data", str(other), "--batches", "2", "--batch-size", "8", "--device", "cpu"]
    heldout.main([path, *options])
    assert not (cfg.run_dir / "heldout.json").exists()
    heldout.main([path, *options, "--teacher", path, "--write"])
    found = json.loads((cfg.run_dir / "heldout.json").read_text())
    assert (found["checkpoint"], found["step"], found["errors"]["value_rmse"]) == ("model.pt", 20, 0)
    (row,) = rows_of(study := read_study([cfg.run_dir]))
    assert row["heldout"] == found["errors"]
    text = markdown(study, [row], None)
    assert f"| {row['name']} | {found['errors']['reward_rmse']:.4f} - | - |" in text
    train(cfg.replace(steps=25), None)
    (row,) = rows_of(study := read_study([cfg.run_dir]))
    assert row["heldout"] == {}, "it is of an earlier step"
    assert "of step 20, not of the last one" in markdown(study, [row], None)
    capsys.readouterr()
    for arguments, message in (
        ([path, "--data", cfg.data_dir], f"was trained on {cfg.data_dir}"),
        ([path, path, *options, "--write"], "one checkpoint of each"),
    ):
        with pytest.raises(SystemExit):
            heldout.main(arguments)
        assert message in capsys.readouterr().err


# -- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_from_one_command_to_the_report(cfg: Config, tmp_path: Path) -> None:
    """Real processes; one value of the sweep is refused, and the others are trained all the same."""
    teacher = train(cfg.replace(work_dir=str(tmp_path / "teacher")), None)
    settings = {**TINY, "tasks": f"[{TASKS[0]}]", "steps": 4, "eval_freq": 4, "eval_episodes": 1, "mpc": False}
    settings |= {"model_size": "null", "data_dir": cfg.data_dir}
    student = [f"student_config.{key}={value}" for key, value in settings.items()]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    swept = ["student_config.distillation_weight=0,0.45,-1", "student_config.seed=1,2"]
    taught = f"teacher_config.checkpoint={teacher}"
    outcome = run(str(REPO / "train.py"), "--multirun", *student, taught, *swept)
    assert outcome.returncode == 1
    assert "Traceback" not in outcome.stderr
    for seed in (1, 2):
        line = f"error: distillation_weight_-1-seed_{seed}: distillation_weight=-1.0 must be at least 0"
        assert line in outcome.stderr.splitlines()
    runs = sorted(str(path.parent.relative_to(tmp_path)) for path in (tmp_path / "logs").rglob("model.pt"))
    assert runs == [f"logs/mt30/{seed}/distillation_weight_{w}-seed_{seed}" for seed in (1, 2) for w in ("0", "0.45")]
    weights = [load_file(tmp_path / path / "model.pt").model for path in runs]
    assert all(not torch.equal(a["_encoder.state.0.weight"], b["_encoder.state.0.weight"])
               for a, b in zip(weights[:2], weights[2:], strict=True))  # fmt: skip

    outcome = run(str(REPO / "report.py"), "logs")
    assert outcome.returncode == 0, outcome.stderr
    groups = json.loads((tmp_path / "report" / "report.json").read_text())["groups"]
    assert [(row["name"], row["seeds"], row["is_control"]) for row in groups] == [
        ("no teacher (one of weight 0)", [1, 2], True),
        ("distillation_weight=0.45", [1, 2], False),
    ]
    assert groups[1]["minus_control_interval"] is not None
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(PNG)
