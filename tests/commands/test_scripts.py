"""The four scripts as they are typed: what they print and write.

Commands run in processes of their own. Most are forked from one that has the libraries loaded, because loading
them takes longer than the work; each script is also started from nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from tdmpc2.checkpoints.files import load_file, save_file
from tdmpc2.commands.hydra_app import sweep_name
from tdmpc2.config import key_names
from tdmpc2.data.chunks import read_chunk
from tdmpc2.precision import execution
from tdmpc2.support.names import safe_name
from tests.helpers.commands import EVALUATE, RUN, SIZES, STUDENT, TASKS, Run, files, good, refused, start

# The whole way from data to evaluation, once for this file


def test_commands_leave_only_the_documented_files(home: Path) -> None:
    assert sorted(path.name for path in home.iterdir()) == ["data", "logs", "quantised", "student.pt"]
    assert sorted(files(home / "data")) == ["chunk_0.pt", "chunk_1.pt", "collect.json", "collect.lock"]
    assert sorted(files(home / "logs")) == [
        *(f"mt30/1/.{name}.lock" for name in ("default", "teacher")),
        *(
            f"mt30/1/{name}/{file}"
            for name in ("default", "teacher")
            for file in ("curves.png", "model.pt", "run.json", "speed.csv", "state.pt", "train.csv", "train.log")
        ),
    ]
    written = [
        *(f"model_{name}.pt" for name in ("fp16", "int8", "mixed")),
        *(f"model_quantization.{e}" for e in ("json", "md", "png")),
    ]
    assert sorted(files(home / "quantised")) == written
    assert (read_chunk(home / "data" / "chunk_1.pt")["task"] == 8).all()
    header = (home / "logs/mt30/1/default/train.csv").read_text().splitlines()[0]
    assert "distillation_loss" in header


def test_evaluate_prints_and_writes_results(run: Run, cwd: Path) -> None:
    """A file's own tasks are played with the planner; two typed keys replace the values of the file."""
    outcome = good(run(f"{EVALUATE} checkpoint=student.pt num_samples=12 eval_episodes=1 horizon=2", cwd))
    assert re.fullmatch(r"Normalized score: \d+\.\d\d", outcome.out.splitlines()[-1])
    assert "student: planner (1 x 12 samples, horizon 2), fp32 on cpu (plain), noise-free" in outcome.out
    assert outcome.err == ""
    for task in ("pendulum-spin", "cartpole-balance"):
        assert re.search(rf"{task} +1 +\d+\.\d +- ", outcome.out)
    directory = cwd / "logs/mt30/1/eval-student"
    summary = json.loads((directory / "results.json").read_text())
    assert summary["parameters"] > 0
    assert 0 < summary["seconds_per_action"] < 60
    assert f"{summary['normalized_score']:.2f}" == outcome.out.split()[-1]
    assert [row["task"] for row in summary["tasks"]] == ["pendulum-spin", "cartpole-balance"]
    protocol = summary["protocol"]
    config = protocol["config"]
    assert (protocol["action"], protocol["precision"], protocol["planner"]) == ("planner", "fp32", "plain")
    assert (config["num_samples"], config["horizon"]) == (12, 2)  # typed
    assert (config["num_elites"], config["iterations"], config["latent_dim"]) == (3, 1, 16)  # in proportion: 4 of 16
    lines = (directory / "results.csv").read_text().splitlines()
    assert lines[0] == "task,seed,return,success"
    assert [line.split(",")[:2] for line in lines[1:]] == [["pendulum-spin", "100"], ["cartpole-balance", "100"]]


def test_evaluate_again_overwrites_nothing(run: Run, cwd: Path) -> None:
    before = files(cwd)
    command = f"{EVALUATE} checkpoint=student.pt task=pendulum-spin mpc=false"
    first, second = good(run(command, cwd)), good(run(command, cwd))
    assert first.out.splitlines()[-1] == second.out.splitlines()[-1]
    after = files(cwd)
    assert after.items() >= before.items()
    folders = [f"logs/mt30/1/eval-student{suffix}" for suffix in ("", "-2")]
    assert after.keys() - before.keys() == {f"{f}/results.{kind}" for f in folders for kind in ("csv", "json")}
    episodes = [after[f"{folder}/results.csv"].decode().splitlines()[1:] for folder in folders]
    assert episodes[0] == episodes[1]
    assert [line.split(",")[0] for line in episodes[0]] == ["pendulum-spin"]  # one task of a multi-task file
    assert "student: policy (no planning)" in first.out


@pytest.mark.slow
def test_evaluate_of_chosen_tasks_plays_only_them(run: Run, cwd: Path) -> None:
    """Chosen tasks may include one that the model was not trained on."""
    outcome = good(run(f"{EVALUATE} checkpoint=student.pt tasks=[cup-spin,pendulum-spin] mpc=false eval_seed=7", cwd))
    lines = (cwd / "logs/mt30/1/eval-student/results.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["cup-spin", "7"], ["pendulum-spin", "7"]]
    assert "walker" not in outcome.out


def test_evaluate_compare_of_precisions_prints_difference(run: Run, cwd: Path) -> None:
    """The report names both files, and a quantised file says in which format it computes."""
    settings = f"mpc=false eval_episodes=2 {TASKS} exp_name=comparison"
    outcome = good(run(f"{EVALUATE} checkpoint=student.pt compare=quantised/model_int8.pt {settings}", cwd))
    *_, difference, last = outcome.out.splitlines()
    number = r"-?\d+\.\d"
    pattern = rf"student\.pt minus quantised/model_int8\.pt: [-+]\d+\.\d\d \(95 % interval \[{number}, {number}\]\)"
    assert re.fullmatch(pattern, difference)
    scores = []
    for folder in ("comparison", "comparison-2"):
        summary = json.loads((cwd / "logs/mt30/1" / folder / "results.json").read_text())
        scores.append(summary["normalized_score"])
        assert summary["interval"][0] <= summary["normalized_score"] <= summary["interval"][1]
    assert last == f"Normalized score: {scores[0]:.2f}"
    assert float(difference.split()[3]) == pytest.approx(scores[0] - scores[1], abs=0.006)
    fallback = r"quantised/model_int8\.pt: int8 file: .*weights are computed in (bf16|fp32), .*\n"
    own = (
        execution("auto", load_file(cwd / "quantised/model_int8.pt"), torch.device("cpu"), kernels=False).name == "int8"
    )
    assert outcome.err == "" if own else re.fullmatch(fallback, outcome.err)


@pytest.mark.slow
def test_evaluate_with_explicit_precision_uses_it(run: Run, cwd: Path) -> None:
    outcome = good(run(f"{EVALUATE} checkpoint=student.pt task=pendulum-spin mpc=false precision=bf16", cwd))
    assert "bf16 on cpu" in outcome.out
    assert outcome.err == ""


@pytest.mark.slow
def test_evaluate_of_few_steps_is_not_compiled(run: Run, cwd: Path) -> None:
    command = EVALUATE.replace("compile=false", "compile=auto")
    outcome = good(run(f"{command} checkpoint=student.pt task=pendulum-spin", cwd))
    assert "ompil" not in outcome.out + outcome.err


def test_collect_with_checkpoint_plays_its_agent(run: Run, cwd: Path) -> None:
    before = files(cwd)
    settings = "checkpoint=student.pt task=pendulum-spin episodes_per_task=1 mpc=false num_threads=1 device=cpu"
    outcome = good(run(f"collect.py {settings} data_dir=data", cwd))
    assert re.search(r"pendulum-spin: return .*, policy student\.pt, chunk_2\.pt", outcome.out)
    assert "data: 1 episodes in 1 files, chunk_2.pt; 0.1 MB to collect" in outcome.out
    del before["data/collect.json"]
    assert files(cwd).items() > before.items()
    chunk = read_chunk(cwd / "data" / "chunk_2.pt")
    assert chunk["obs"].shape == (1, 501, 24)
    assert (chunk["task"] == 29).all()


def test_train_again_stops_continues_or_is_refused(run: Run, cwd: Path) -> None:
    """The same command has nothing left to do, more steps continue the run, another configuration is refused."""
    command = f"train.py {STUDENT} teacher_config.checkpoint=logs/mt30/1/teacher/model.pt"
    before = files(cwd)
    assert "already trained for 10 steps" in good(run(command, cwd)).out
    refused = run(f"{command} student_config.rho=0.4 student_config.seed=1", cwd)
    assert refused.code == 2
    assert "rho: 0.5 there, 0.4 now" in refused.err
    refused = run(f"train.py {STUDENT} ~teacher_config", cwd)
    assert refused.code == 2
    assert "teacher_sha256: " in refused.err
    assert files(cwd) == before
    assert "continuing at step 10" in good(run(f"{command} student_config.steps=1e1+4", cwd)).out
    assert load_file(cwd / "logs/mt30/1/default/model.pt").step == 14


def test_train_multirun_makes_one_directory_per_run(run: Run, cwd: Path) -> None:
    """A run's directory is named by its swept keys and their values, not by keys that all runs share."""
    shared = f"{STUDENT} teacher_config.checkpoint=logs/mt30/1/teacher/model.pt student_config.steps=2"
    shutil.copytree(cwd / "data", cwd / "more" / "data")
    shared = shared.replace("student_config.data_dir=data", "student_config.data_dir=data,more/data")
    good(run(f"train.py --multirun {shared} student_config.seed=1,2", cwd))
    for seed in (1, 2):
        record = json.loads((cwd / f"logs/mt30/{seed}/data_dir_data-seed_{seed}/run.json").read_text())
        assert (record["seed"], record["data_dir"]) == (seed, "data")
    runs = [str(path.parent.relative_to(cwd)) for path in (cwd / "logs").rglob("model.pt")]
    assert sorted(re.sub(r"-[0-9a-f]{8}$", "-CHECKSUM", name) for name in runs) == sorted(
        [f"logs/mt30/1/{name}" for name in ("default", "teacher")]
        + [f"logs/mt30/{seed}/data_dir_data-seed_{seed}" for seed in (1, 2)]
        + [f"logs/mt30/{seed}/data_dir_more_data_seed_{seed}-CHECKSUM" for seed in (1, 2)]  # the path has a slash
    )
    assert sorted(path.name for path in cwd.iterdir()) == ["data", "logs", "more", "quantised", "student.pt"]
    settings = "task=pendulum-spin mpc=false"
    outcome = good(run(f"{EVALUATE} checkpoint=logs/mt30/2/data_dir_data-seed_2/model.pt {settings}", cwd))
    assert "data_dir_data-seed_2: policy" in outcome.out  # and not "model", the name of every run's file


@pytest.mark.parametrize(
    "swept",
    [
        "student_config.lr=1e-05,student_config.seed=2",
        "student_config.tasks=[cup-spin,walker-walk]",
        "teacher_config.checkpoint=/a b/c=d.pt",
        "student_config.data_dir='data/ü(1)'",
        "student_config.exp_name=null",
    ],
)
def test_sweep_name_is_typeable(monkeypatch: pytest.MonkeyPatch, swept: str) -> None:
    """The directory of a run in a sweep can be typed as the value of an override, without quotes."""
    settings = OmegaConf.create({"mode": RunMode.MULTIRUN, "job": {"override_dirname": swept}})
    monkeypatch.setattr(HydraConfig, "get", lambda: settings)
    path = f"logs/mt30/1/{sweep_name()}/model.pt"
    (override,) = OverridesParser.create().parse_overrides([f"checkpoint={path}"])
    assert override.value() == path


def test_scripts_with_own_environment_run(run: Run, tmp_path: Path) -> None:
    """A Gymnasium environment, named by module and id, is collected, trained on, evaluated and filmed."""
    task = "tests.helpers.toy_envs:Stands-v0"
    sizes = SIZES.replace("task_dim=8 ", "")
    good(run(f"collect.py task={task} data_dir=data episodes_per_task=3 num_threads=1", tmp_path))
    settings = f"task={task} {sizes} data_dir=data batch_size=4 steps=2 eval_freq=0 horizon=2"
    student = " ".join(f"student_config.{key}" for key in settings.split())
    good(run(f"train.py teacher_config=null {student} student_config.work_dir=run", tmp_path))
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    evaluate = f"{EVALUATE} checkpoint=run/model.pt work_dir=result save_video=true"
    refused(run(evaluate, tmp_path), f"names the module .* name the task yourself, as in task={task}")
    outcome = good(run(f"{evaluate} task={task}", tmp_path))
    assert outcome.out.splitlines()[-1].startswith("Return: ")  # not a score: the scale is unknown
    assert sorted(files(tmp_path / "result")) == ["results.csv", "results.json", f"{safe_name(task)}.mp4"]


# Scripts in a new interpreter


def test_scripts_without_files_say_what_is_missing(tmp_path: Path) -> None:
    outcome = start("train.py", tmp_path)
    assert outcome.code == 2
    assert outcome.out == ""
    first, data, teacher = outcome.err.splitlines()
    assert first.startswith("error: training cannot start, something is missing")
    assert re.search(r"data_dir: data/mt30 .*`python collect\.py .*nicklashansen/tdmpc2", data)
    assert re.search(r"teacher: teacher_config\.checkpoint=models/mt30-317M\.pt .*teacher_config=null", teacher)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("collect.py tasks=[walker-wlak]", "'walker-walk'"),
        ("evaluate.py", "Nothing to evaluate"),
        ("quantize.py --checkpoint none.pt", "none.pt does not exist"),
    ],
)
def test_script_in_fresh_process_fails_in_one_line(command: str, message: str, tmp_path: Path) -> None:
    refused(start(command, tmp_path), message)
    assert not list(tmp_path.iterdir())


def test_cfg_job_prints_every_key(run: Run, tmp_path: Path) -> None:
    shown = OmegaConf.create(good(run("train.py --cfg job student_config.steps=7", tmp_path)).out)
    assert set(shown.student_config) == set(shown.teacher_config) == set(key_names())
    assert (shown.student_config.steps, shown.teacher_config.model_size) == (7, 317)
    shown = OmegaConf.create(good(run("evaluate.py --cfg job", tmp_path)).out)
    assert set(shown) == set(key_names())
    assert not list(tmp_path.iterdir())


def test_the_other_dialect_is_understood(run: Run, cwd: Path) -> None:
    """`evaluate.py --checkpoint x.pt` used to print Hydra's usage, and `evaluate.py x.pt` a grammar error."""
    settings = "--mpc false --tasks [pendulum-spin, cartpole-balance] --eval-episodes=1 --device cpu"
    outcome = good(run(f"evaluate.py student.pt {settings}", cwd))
    assert re.search(r"cartpole-balance +1 +", outcome.out)


def test_training_takes_keys_without_a_name(run: Run, cwd: Path) -> None:
    good(run(f"train.py {RUN} steps=2 exp_name=short teacher_config=none", cwd))
    assert load_file(cwd / "logs/mt30/1/short/model.pt").step == 2


def test_run_of_a_multirun_that_fails_is_named_and_the_others_go_on(run: Run, cwd: Path) -> None:
    outcome = run(f"train.py -m {RUN} steps=2 teacher_config=null data_dir=nowhere,data", cwd)
    assert outcome.code == 1
    assert "error: data_dir_nowhere: " in outcome.err
    assert "Traceback" not in outcome.err
    assert load_file(cwd / "logs/mt30/1/data_dir_data/model.pt").step == 2


def test_collect_plays_a_file_as_it_was_trained(run: Run, cwd: Path) -> None:
    """A file whose policy acts alone was planned with, unlike in evaluate."""
    file = load_file(cwd / "student.pt")
    save_file(cwd / "alone.pt", {"model": file.model, "config": {**(file.config or {}), "mpc": False}}, overwrite=False)
    for number, (typed, kind) in enumerate((("", "policy"), ("mpc=true", "planner"), ("planner=policy", "policy"))):
        line = (
            f"collect.py checkpoint=alone.pt tasks=[pendulum-spin] episodes_per_task=1 data_dir=alone_{number} {typed}"
        )
        good(run(line, cwd))
        assert f'"kind": "{kind}"' in (cwd / f"alone_{number}" / "collect.json").read_text()


def test_preset_beside_a_mix_sets_the_budget_of_its_planners(run: Run, cwd: Path) -> None:
    mix = "mix=[{share:1,kind:planner,checkpoint:student.pt}]"
    good(run(f"collect.py {mix} planner=fast tasks=[pendulum-spin] episodes_per_task=1 data_dir=fast", cwd))
    record = (cwd / "fast" / "collect.json").read_text()
    assert '"plan_start": "policy"' in record
    assert '"num_samples": 128' in record
