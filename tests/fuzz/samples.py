"""The real files that are changed, made once by the real commands at tiny size."""

from __future__ import annotations

from pathlib import Path

from tdmpc2.agent import TDMPC2
from tdmpc2.commands import run
from tdmpc2.config import parse_cfg
from tests.helpers.minari_sets import write_demonstrations
from tests.helpers.toy_envs import FALLS, STANDS
from tests.helpers.tuning import file_of_many
from tests.helpers.unequal import write_logs

MODEL = (
    "model_size=null enc_dim=8 mlp_dim=8 latent_dim=8 num_q=2 num_samples=8 num_elites=4 num_pi_trajs=2 "
    "iterations=1 num_threads=1 device=cpu compile=false"
)
MT30 = f"{MODEL} task_dim=4 tasks=[pendulum-spin,cartpole-balance]"
TOY = f"{MODEL} task={STANDS}"
TRAIN = f"{MT30} batch_size=8 log_freq=2 eval_freq=0 save_freq=5 data_dir=data work_dir=run"
PLAIN = "save_csv=false"  # skips the figure, which takes longest
ONLINE = f"{TOY} seed_steps=14 batch_size=4 horizon=2 eval_freq=0 save_freq=10 log_freq=5 work_dir=online {PLAIN}"
FALLING = f"{MODEL} task={FALLS} episodic=true horizon=2 batch_size=4 eval_freq=0 save_freq=10 log_freq=5 {PLAIN}"
FALLEN = f"{FALLING} mode=offline steps=1 work_dir=new teacher_config=null"
SHOWN = f"{FALLING} seed_steps=14 demonstrations=falls bc_coef=0.5"
TAUGHT = f"{TRAIN} {PLAIN} teacher_config=null teachers={{pendulum-spin:spin.pt}}".replace(
    "work_dir=run", "work_dir=taught"
)
TUNED = (  # the file decides its widths
    f"task={STANDS} checkpoint=many.pt freeze=[encoder] num_samples=8 num_elites=4 num_pi_trajs=2 iterations=1 "
    f"num_threads=1 device=cpu compile=false seed_steps=14 batch_size=4 eval_freq=0 save_freq=10 log_freq=5 {PLAIN}"
)
SHARED = (  # episodes of 500 steps, each of which is stored for both tasks
    f"{MODEL} task=mt30 mode=online tasks=[pendulum-swingup,pendulum-spin] share_body=true task_balance=tasks "
    "task_dim=4 num_envs=1 mpc=false seed_steps=500 utd=0.01 batch_size=4 eval_freq=0 save_freq=500 log_freq=100 "
    f"work_dir=shared {PLAIN}"
)
SEEN = f"{ONLINE} obs=rgb num_channels=2".replace("work_dir=online", "work_dir=seen")
RESUME = f"{TRAIN} steps=11 teacher_config=null"
EVALUATE = f"eval_episodes=1 num_threads=1 device=cpu compile=false task={STANDS}"
#: Files of the user's that lie in every directory and must never be touched.
OWN = {"notes.txt": "do not lose this\n", "mine.csv": "step,note\n1,x\n", "train.png.txt": "a picture of mine\n"}


def make(folder: Path) -> None:
    """Fill a folder with one file of every kind that is read. The working directory must be that folder."""
    command("collect", f"{MODEL} tasks=[pendulum-spin,cartpole-balance] episodes_per_task=2 data_dir=data")
    command("collect", f"{TOY} episodes_per_task=3 data_dir=toydata")
    command("collect", f"{MODEL} task={FALLS} episodes_per_task=2 data_dir=falls")
    write_logs(folder / "falls")  # unequal lengths
    command("data", "convert data store")
    command("data", "convert falls fallstore")
    command("train", f"{TRAIN} steps=10 teacher_config=null")
    (folder / "student.pt").write_bytes((folder / "run/model.pt").read_bytes())
    toy = f"{TOY} mode=offline batch_size=4 steps=3 eval_freq=0 data_dir=toydata work_dir=toyrun"
    command("train", f"{toy} teacher_config=null")
    for name in ("toy.pt", "other.pt"):
        (folder / name).write_bytes((folder / "toyrun/model.pt").read_bytes())
    parse = dict(word.split("=", 1) for word in MODEL.split())
    TDMPC2(parse_cfg({**parse, "model_size": None, "task": "pendulum-spin"})).save(folder / "spin.pt")
    file_of_many(folder)
    command("data", "export toydata minari form=minari")
    write_demonstrations(folder / "shown.pt", (4, 3), (4, 2))
    command("train", f"{ONLINE} steps=30")
    command("train", f"{SHOWN} work_dir=shown steps=20")
    command("train", f"{TAUGHT} steps=10")
    command("train", f"{TUNED} work_dir=tuned steps=30")
    command("train", f"{SHARED} steps=1010")
    command("train", f"{SEEN} steps=20")
    command("quantize", "checkpoint=student.pt plans=2 recipes=int8 repeats=1")
    command("checkpoint", "convert student_int8.pt layout=safetensors out=student.safetensors")
    command("targets", "store student.pt")
    command("evaluate", f"checkpoint=toy.pt {EVALUATE} work_dir=results")
    command("heldout", "student.pt data=store batches=1 batch_size=4 write=true")
    for directory in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name, text in OWN.items():
            (directory / name).write_text(text)


def command(name: str, line: str) -> None:
    run(name, line.split())
