"""Bad input to the scripts ends in one line and destroys nothing."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import parse_cfg
from tdmpc2.support.cli import one_line_errors
from tests.helpers.commands import EVALUATE, SIZES, STUDENT, Run, files, refused


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, ("touch exploded",)


@pytest.fixture(scope="module")
def traps(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the folder of ``home`` and put bad files into it."""
    cwd = tmp_path_factory.mktemp("traps") / "home"
    shutil.copytree(home, cwd)
    content = (cwd / "student.pt").read_bytes()
    (cwd / "half.pt").write_bytes(content[: len(content) // 2])
    (cwd / "empty.pt").write_bytes(b"")
    (cwd / "words.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    (cwd / "bomb.pt").write_bytes(pickle.dumps({"model": Bomb()}))
    torch.save({"model": Bomb()}, cwd / "zipped_bomb.pt")
    torch.save({"model": {"weight": torch.zeros(2)}}, cwd / "other.pt")
    single = dict(setting.split("=") for setting in SIZES.replace("model_size=null ", "").split())
    TDMPC2(parse_cfg({**single, "task": "cup-spin", "model_size": None})).save(cwd / "single.pt")
    for name in ("no_data", "half_data", "bomb_data", "misnamed"):
        (cwd / name).mkdir()
    chunk = (cwd / "data/chunk_0.pt").read_bytes()
    (cwd / "half_data/chunk_0.pt").write_bytes(chunk[: len(chunk) // 2])
    (cwd / "bomb_data/chunk_0.pt").write_bytes(pickle.dumps(Bomb()))
    shutil.copy(cwd / "data/chunk_0.pt", cwd / "misnamed/chunk_0 (1).pt")
    return cwd


TRAIN = f"train.py {STUDENT} teacher_config=null student_config.exp_name=new"
TAUGHT = f"train.py {STUDENT} student_config.exp_name=new teacher_config.checkpoint"


BAD_INPUT = [
    # keys
    ("train.py student_config.stepz=1", "'stepz' in student_config on the command line. Did you mean 'steps'"),
    ("train.py stepz=1", "'stepz' on the command line. Did you mean 'steps'"),
    ("evaluate.py chekpoint=x.pt", "'chekpoint' in the command line. Did you mean 'checkpoint'"),
    # values
    (f"{TRAIN} student_config.lr=fast", "lr='fast' must be a number"),
    (f"{TRAIN} student_config.horizon=501", "horizon=501 must be at most 500"),
    (f"{EVALUATE} checkpoint=student.pt device=tpu9", "device=tpu9 is not available here .*use device=auto"),
    (f"{EVALUATE} checkpoint=student.pt latent_dim=24", "latent_dim 16 instead of 24"),
    # tasks
    (f"{TRAIN} student_config.task=walker-wlak", "'walker-wlak'. Did you mean 'walker-walk'"),
    (f"{TRAIN} student_config.task=Nope-v9", "task=Nope-v9 in student_config"),
    (
        "collect.py tasks=[walker-wlak]",
        r"'walker-wlak' is not in task set 'mt30' \(.* and 26 others\)\. Did you mean 'walker-walk'",
    ),
    (f"{EVALUATE} checkpoint=student.pt task=pendulum-spim", "Did you mean 'pendulum-spin'"),
    # files
    ("evaluate.py", "Nothing to evaluate: name a file"),
    (f"{EVALUATE} checkpoint=studen.pt", "studen.pt does not exist. Did you mean 'student.pt'"),
    (f"{EVALUATE} checkpoint=half.pt", r"half.pt \([\d,]+ bytes\) is truncated or not a checkpoint"),
    (f"{EVALUATE} checkpoint=bomb.pt", "bomb.pt was refused: .*Nothing in it was executed"),
    (f"{EVALUATE} checkpoint=zipped_bomb.pt", "was refused: it asks for '(posix|nt).system'"),
    (f"{EVALUATE} checkpoint=student.pt compare=studen.pt", "studen.pt does not exist"),
    ("quantize.py --checkpoint half.pt", "half.pt"),
    ("quantize.py --checkpoint logs/mt30/1/default/model.pt --out quantised", "There is already .*--force"),
    (f"{TAUGHT}=half.pt", "half.pt"),
    (f"{TAUGHT}=gone.pt", "teacher_config.checkpoint=gone.pt does not exist"),
    # data
    (f"{TRAIN} student_config.data_dir=no_data", "data_dir: no_data has no chunk files"),
    (f"{TRAIN} student_config.data_dir=half_data", "half_data/chunk_0.pt .* cannot be read as a chunk file"),
    (f"{TRAIN} student_config.data_dir=bomb_data", "bomb_data/chunk_0.pt"),
    (f"{TRAIN} student_config.tasks=[cup-spin]", "cup-spin"),
]
MORE_BAD_INPUT = [
    ("train.py +student_config.new=1", "'new' in student_config"),
    ("train.py ++nonsense=1", "Unknown key 'nonsense'"),
    ("train.py teacher_cfg=null", "'teacher_cfg' on the command line"),
    ("evaluate.py =3", "=3 does not exist"),
    ("collect.py episodes=3", "Unknown key 'episodes'"),
    ("collect.py student_config.seed=3", "Unknown key 'student_config.seed'"),
    (f"{TRAIN} student_config.batch_size=0", "batch_size=0 must be at least 1"),
    (f"{EVALUATE} checkpoint=student.pt eval_episodes=0", "eval_episodes=0 must be at least 1"),
    (f"{EVALUATE} checkpoint=student.pt precision=fp8", "precision=fp8 is not one of auto, fp32, bf16, fp16"),
    ("collect.py task=lift-cube", "ManiSkill 3 has no task 'lift-cube' any more"),
    ("collect.py mpc=false mix=[{share:1,kind:random}]", "mpc=false beside mix"),
    ("collect.py planner=policy mix=[{share:1,kind:random}]", "planner=policy beside mix"),
    (f"{EVALUATE} checkpoint=student.pt task=dog-run", "task=dog-run: student.pt was trained on 'mt30'"),
    (f"{EVALUATE} checkpoint=student.pt task=mt80", "task=mt80: student.pt was trained on 'mt30'"),
    (f"{EVALUATE} checkpoint=student.pt tasks=[]", "tasks=.. must name at least one task"),
    ("evaluate.py compare=student.pt", "Nothing to evaluate: name a file"),
    ("evaluate.py random", "random does not exist"),
    ("evaluate.py random compare=student.pt", "random does not exist"),
    (f"{EVALUATE} checkpoint=nowhere/x.pt", "nor does its directory"),
    (f"{EVALUATE} checkpoint=data", "is a directory"),
    (f"{EVALUATE} checkpoint=empty.pt", "empty.pt"),
    (f"{EVALUATE} checkpoint=words.pt", "words.pt"),
    (f"{EVALUATE} checkpoint=other.pt", "Not the weights of a TD-MPC2 model"),
    (f"{EVALUATE} checkpoint=student.pt compare=bomb.pt", "bomb.pt was refused"),
    (f"{EVALUATE} checkpoint=student.pt compare=single.pt", "have different tasks: choose common ones"),
    ("collect.py checkpoint=half.pt", "half.pt"),
    ("quantize.py --checkpoint bomb.pt", "was refused"),
    (f"{TAUGHT}=bomb.pt", "was refused"),
    (f"{TAUGHT}=single.pt", "Teacher and student have different task sets"),
    (f"{TRAIN} student_config.checkpoint=gone.pt", "weights to start from: checkpoint=gone.pt does not exist"),
    (f"{TRAIN} student_config.checkpoint=bomb.pt", "was refused"),
    (f"{TRAIN} student_config.data_dir=misnamed", "is not named chunk_<number>.pt"),
]


@pytest.mark.parametrize(
    ("command", "message"), [*BAD_INPUT, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_BAD_INPUT)]
)
def test_command_with_bad_input_fails_in_one_line_and_changes_nothing(
    run: Run, traps: Path, command: str, message: str
) -> None:
    before = files(traps)
    outcome = run(command, traps)
    if "cannot start, something is missing" in outcome.err:  # a list with one line for each missing thing
        assert outcome.code == 2
        assert re.search(message, outcome.err)
    else:
        refused(outcome, message)
        assert len(outcome.err.splitlines()) == 1
    assert files(traps) == before
    assert not (traps / "exploded").exists()


def test_evaluate_on_missing_device_is_refused(run: Run, cwd: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = EVALUATE.replace("device=cpu", "device=cuda")
    refused(run(f"{command} checkpoint=student.pt", cwd), r"device=cuda is not available here \(.*\); use device=auto")


@pytest.mark.parametrize("error", [ValueError("x"), PermissionError(13, "x"), ModuleNotFoundError("x")])
def test_one_line_errors_of_use_print_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @one_line_errors
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as leaving:
        fails()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_one_line_errors_with_traceback_asked_for_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    @one_line_errors
    def fails() -> None:
        raise ValueError("wrong")

    with pytest.raises(SystemExit) as leaving:
        fails()
    assert leaving.value.code == 2
    monkeypatch.setenv("TDMPC2_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        fails()
