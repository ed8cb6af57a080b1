"""Commands that read a changed file, one row for each."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.fuzz.mutations import VALUES
from tests.fuzz.samples import (
    EVALUATE,
    FALLEN,
    MODEL,
    MT30,
    ONLINE,
    PLAIN,
    RESUME,
    SEEN,
    SHARED,
    SHOWN,
    TAUGHT,
    TOY,
    TRAIN,
    TUNED,
)  # fmt: skip
from tests.helpers.toy_envs import STANDS


@dataclass(frozen=True)
class Job:
    """A command and the files it reads.

    Attributes:
        files: patterns of the sample files one of which is changed.
        command: the words of the command line; ``{file}`` is the changed file. ``call`` names a function instead.
        folders: what is copied beside the changed file.
        writes: patterns of what the command may make or change.
        weight: how often it is drawn; slow commands less.
        refusals: exit codes of a refusal.
        same: checkpoint or other file that the command writes. Damaged bytes of weights or data that it accepts must
            not have changed it.
        checked: damaged bytes of an array must be refused.
    """

    files: tuple[str, ...]
    command: str
    folders: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    weight: float = 1.0
    refusals: tuple[int, ...] = (2,)
    same: str | None = None
    checked: bool = False


_MODELS = ("student.pt", "student_int8.pt", "toy.pt", "student.safetensors")
_SLUG = STANDS.replace(".", "-").replace(":", "-")
_STORE = ("store/*.npy", "store/*.json")
_FALLEN = ("fallstore/*.npy", "fallstore/*.json")
_FRESH = f"teacher_config=null steps=1 work_dir=new {PLAIN}"

JOBS: dict[str, Job] = {
    "load and act": Job(_MODELS, "call act {file}", weight=6),
    "checkpoint inspect": Job(_MODELS, "checkpoint inspect {file}", weight=4),
    "checkpoint convert": Job(
        _MODELS, "checkpoint convert {file} layout=a out=new.pt", (), ("new.pt",), 4, same="new.pt",
    ),
    "evaluate": Job(("toy.pt",), f"evaluate checkpoint={{file}} {EVALUATE} work_dir=new", writes=("new/*",)),
    "evaluate, compare": Job(
        ("toy.pt",), f"evaluate checkpoint=other.pt compare={{file}} {EVALUATE} work_dir=new", ("other.pt",),
        ("new*",), 0.5,
    ),
    "play": Job(
        ("toy.pt",), "play checkpoint={file} window=false out=new.mp4 num_threads=1 device=cpu compile=false", (),
        ("new.mp4",), 0.5,
    ),
    "collect": Job(
        ("toy.pt",), f"collect checkpoint={{file}} task={EVALUATE.split('task=')[1]} num_threads=1 device=cpu "
        "compile=false episodes_per_task=1 data_dir=new", writes=("new/*",), weight=0.5,
    ),
    "collect, go on": Job(
        ("toydata/collect.json", "toydata/*.pt"), f"collect {TOY} episodes_per_task=4 data_dir=toydata", ("toydata",),
        ("toydata/chunk_*.pt", "toydata/collect.json", "toydata/*lock"), 0.5,
    ),
    "train from": Job(
        _MODELS[:2], f"train {TRAIN} {_FRESH} checkpoint={{file}}", ("data",), ("new/*", "data/store/*"),
        same="new/model.pt",
    ),
    "teacher": Job(
        _MODELS[:2], f"train {TRAIN} teacher_config.checkpoint={{file}} steps=1 work_dir=new {PLAIN}", ("data",),
        ("new/*", "data/store/*"), same="new/model.pt",
    ),
    "teachers": Job(
        ("spin.pt",), f"train {TAUGHT} steps=1".replace("work_dir=taught", "work_dir=new"), ("data",),
        ("new/*", "data/store/*"), same="new/model.pt",
    ),
    "fine-tune": Job(("many.pt",), f"train {TUNED} steps=15 work_dir=new", (), ("new/*",), same="new/model.pt"),
    "quantize": Job(
        ("student.pt",), "quantize checkpoint={file} plans=2 repeats=1 recipes=int8 out=new", (), ("new/*",), 0.1,
    ),
    "heldout": Job(
        ("student.pt", *_STORE), "heldout student.pt data=store batches=1 batch_size=4", ("student.pt", "store"),
    ),
    "targets": Job(
        ("student.pt", *_STORE), "targets store student.pt columns=value", ("student.pt", "store"),
        ("store/targets/*", "store/.*"), 0.5,
    ),
    "data import minari": Job(
        ("minari/*/episodes-v0/data/*",), f"data import minari/{_SLUG}/episodes-v0 new form=minari task={STANDS}",
        ("minari",), ("new/*", ".new*"),
    ),
    "data import mmbench": Job(
        ("shown.pt",), f"data import {{file}} new form=mmbench task={STANDS}", (), ("new/*", ".new*"), 2,
    ),
    "data verify chunks": Job(("data/*.pt", "data/*.json"), "data verify data", ("data",), weight=3, refusals=(1, 2)),
    "data inspect chunks": Job(("data/*.pt", "data/*.json"), "data inspect data", ("data",), weight=2),
    "data convert chunks": Job(
        ("data/*.pt",), "data convert data new", ("data",), ("new/*", ".new*"), same="new/rows.npy",
    ),
    "train on chunks": Job(
        ("data/*.pt", "data/*.json"), f"train {TRAIN} {_FRESH} data_device=cpu", ("data",), ("new/*", "data/store/*")
    ),
    "data verify store": Job(_STORE, "data verify store", ("store",), weight=6, refusals=(1, 2), checked=True),
    "data inspect store": Job(_STORE, "data inspect store", ("store",), weight=4),
    "data convert store": Job(_STORE, "data convert store new", ("store",), ("new/*", ".new*"), 2, checked=True),
    "train on a store": Job(
        _STORE, f"train {TRAIN} {_FRESH}".replace("data_dir=data", "data_dir=store"), ("store",), ("new/*", "store/.*")
    ),
    "data verify terminating": Job(
        _FALLEN, "data verify fallstore", ("fallstore",), refusals=(1, 2), weight=2, checked=True,
    ),
    "data convert terminating store": Job(
        _FALLEN, "data convert fallstore new", ("fallstore",), ("new/*", ".new*"), 2, checked=True,
    ),
    "data inspect terminating": Job(_FALLEN, "data inspect fallstore", ("fallstore",), weight=2),
    "data convert terminating chunks": Job(
        ("falls/*.pt",), "data convert falls new", ("falls",), ("new/*", ".new*"), same="new/rows.npy",
    ),
    "data export terminating": Job(
        _FALLEN, "data convert fallstore new to=chunks", ("fallstore",), ("new/*", ".new*"), checked=True,
    ),
    "train on terminating chunks": Job(
        ("falls/*.pt", "falls/*.json"), f"train {FALLEN} data_dir=falls", ("falls",), ("new/*", "falls/store/*"),
    ),
    "train on a terminating store": Job(
        _FALLEN, f"train {FALLEN} data_dir=fallstore", ("fallstore",), ("new/*", "fallstore/.*"),
    ),
    "demonstrations": Job(
        ("falls/*.pt", "falls/*.json"), f"train {SHOWN} work_dir=new steps=15", ("falls",), ("new/*", "falls/store/*"),
        same="new/model.pt",
    ),
    "demonstrations in a store": Job(
        _FALLEN, f"train {SHOWN} work_dir=new steps=15".replace("=falls", "=fallstore"), ("fallstore",),
        ("new/*", "fallstore/.*"),
    ),
    "from-run": Job(
        ("online/state.pt", "online/replay/*", "online/run.json"), "data from-run online new", ("online",),
        ("new/*", ".new*", "online/.*"), 2, same="new/rows.npy",
    ),
    "from-run, terminating": Job(
        ("shown/state.pt", "shown/replay/*", "shown/run.json"), "data from-run shown new", ("shown",),
        ("new/*", ".new*", "shown/.*"), 2, same="new/rows.npy",
    ),
    "from-run, shared": Job(
        ("shared/state.pt", "shared/replay/*", "shared/run.json"), "data from-run shared new", ("shared",),
        ("new/*", ".new*", "shared/.*"), same="new/rows.npy",
    ),
    "targets cache": Job(
        ("store/targets/*/*",),
        f"train {TRAIN} teacher_config.checkpoint=student.pt distillation_cache=full steps=1 work_dir=new".replace(
            "data_dir=data", f"data_dir=store {PLAIN}"
        ),
        ("store", "student.pt"), ("new/*", "store/*"), 2,
    ),
    "resume": Job(
        ("run/state.pt", "run/run.json", "run/model.pt"), f"train {RESUME} {PLAIN}", ("run", "data"),
        ("run/[!mn]*", "run/model*", "run/.*", "data/store/*"), 4, same="run/model.pt",
    ),
    "resume, with a figure": Job(
        ("run/*.csv", "run/*.json"), f"train {RESUME}", ("run", "data"),
        ("run/[!mn]*", "run/model*", "run/.*", "data/store/*"),
    ),
    "resume online": Job(
        ("online/state.pt", "online/replay/*", "online/run.json"), f"train {ONLINE} steps=32", ("online",),
        ("online/[!mn]*", "online/model*", "online/.*"), 3, same="online/model.pt",
    ),
    **{
        f"resume {run}": Job(
            (f"{run}/state.pt", f"{run}/replay/*", f"{run}/run.json", *files), f"train {line}", (run, *folders),
            (f"{run}/[!mn]*", f"{run}/model*", f"{run}/.*", "*/store/*"), weight, same=f"{run}/model.pt",
        )
        for run, files, folders, line, weight in (
            ("shown", ("falls/*.pt", "falls/*.json"), ("falls",), f"{SHOWN} work_dir=shown steps=22", 2),
            ("taught", ("spin.pt",), ("data", "spin.pt"), f"{TAUGHT} steps=11", 2),
            ("tuned", ("many.pt",), ("many.pt",), f"{TUNED} work_dir=tuned steps=32", 2),
            ("shared", (), (), f"{SHARED} steps=1011", 1),
            ("seen", (), (), f"{SEEN} steps=22", 1),
        )
    },
    "report": Job(
        ("run/run.json", "run/*.csv", "run/*.json"), "report run out=new", ("run", "store"), ("new/*",), 1, (1, 2)
    ),
    "report page": Job(
        ("run/run.json", "run/*.csv", "run/*.json"), "report run html=new.html", ("run", "store"), ("new.html",), 0.5,
        (1, 2),
    ),
    "results": Job(
        ("results/*.json", "results/*.csv"), f"evaluate checkpoint=toy.pt {EVALUATE} work_dir=results",
        ("results", "toy.pt"), ("results*",), 0.5,
    ),
}  # fmt: skip

_WORDS = (
    "", "-1", "0", "1", "nan", "inf", "-inf", "1e400", "1e12", "1000000000000", "null", "[]", "[[]]", "{}", "{a:1}",
    "true", "x", "'x'", "a=b", "~/x.pt", "../..", "/dev/zero", "/dev/null", "[walker-walk]", "[pendulum-spin,x]",
    "${seed}", "${foo", "a,b", "os:x-v0", "no_such_module:X-v0", "'a b'", "ünï", "(", "%", "[1,", "0x10", "1_0",
    "5", "2", "0.5", "1,2", "student.pt", "data", "store", "notes.txt", "fp16", "int8", "cuda", "cpu", "mps", "meta",
    "Hopper-v5", "Pendulum-v1", "mw-drawer-open", "mw-x", "myo-pose", "[mw-reach,myo-pose]", "gymnasium:Pendulum-v1",
    "{pendulum-spin:student.pt}", "{walker-walk:toy.pt,x:y}", "[pendulum-spin toy.pt]", "[encoder,x]", "falls",
    "many.pt", "online", "a" * 300,
)  # fmt: skip
_PLAIN = {
    "data": ("inspect", "verify", "convert", "from-run", "run",
             "task=", "quick", "figure=", "json", "dtype=", "tasks=", "to=",
             "max_episodes_per_task=", "episodes_per_file=", "data", "store", "falls", "online", "new"),
    "checkpoint": ("inspect", "convert", "student.pt", "layout=", "out=", "overwrite", "toy.pt", "notes.txt"),
    "heldout": ("student.pt", "data=", "data=store", "teacher=", "tasks=", "batches=1", "batch_size=", "seed=",
                "device="),
    "targets": ("store", "student.pt", "data_dir=", "teacher=", "columns=", "task=", "device=", "batch_rows="),
    "report": ("run", "data", "out=", "out=new", "force", "paths=", "html=", "html=new.html", "html=run"),
    "play": (
        "toy.pt", "checkpoint=", "window=false", "out=new.mp4", "out=new", "episodes=2", "episodes=0", "seed=-1",
        "mpc=false", "num_samples=1", "task=", "tasks=[]", "device=cpu",
    ),
    "quantize": ("student.pt", "checkpoint=", "recipes=", "limit=", "plans=2", "repeats=1", "out=new", "rows="),
    "doctor": ("x", "json", "--json"),
}  # fmt: skip


def random_line(rng: random.Random) -> list[str]:
    """Compose a command line of a real command, real keys, and values that may be anything."""
    from tdmpc2.config import key_names

    name = rng.choice(("train", "online", "tune", "evaluate", "collect", *_PLAIN, "x"))
    if name in _PLAIN:
        words = []
        for word in rng.sample(_PLAIN[name], min(len(_PLAIN[name]), rng.randrange(5))):
            words.append(word + rng.choice(_WORDS) if word.endswith("=") else word)
        return [name, *words, *rng.choices(_WORDS, k=int(rng.random() < 0.2))]
    base = {
        "train": f"{MT30} data_dir=data batch_size=8 steps=1 eval_freq=0 work_dir=new teacher_config=null dry_run=true",
        "online": f"{ONLINE} steps=20 dry_run=true".replace("work_dir=online", "work_dir=new"),
        "tune": f"{TUNED} steps=20 dry_run=true work_dir=new",
        "evaluate": f"checkpoint=toy.pt {EVALUATE} work_dir=new",
        "collect": f"{MODEL} task={EVALUATE.split('task=')[1]} episodes_per_task=1 data_dir=new",
    }.get(name, "")
    keys = rng.sample(sorted(key_names()), rng.choice((1, 1, 1, 2)))
    words = [
        f"{rng.choice(('', '', '', '--', '+', '++', '~', 'student_config.', 'teacher_config.'))}{key}={_word(rng)}"
        for key in keys
        if key not in ("eval_episodes", "episodes_per_task")  # huge values of these are valid, but take forever
    ]
    return ["train" if name in ("online", "tune") else name, *base.split(), *words]


def _word(rng: random.Random) -> str:
    if rng.random() < 0.8:
        return rng.choice(_WORDS)
    value = rng.choice(VALUES[:7])(rng)
    huge = isinstance(value, int) and value.bit_length() > 1000  # Python refuses to print it
    return ("9" * 5000 if huge else str(value)).replace("\x00", "")
