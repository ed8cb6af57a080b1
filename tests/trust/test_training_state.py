"""Every entry of ``state.pt`` and ``run.json`` is checked against the run, and nothing is half loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import read_file, save_file
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.training import run_dir, run_record
from tdmpc2.training.state_file import read_state
from tests.helpers.runs import TINY

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(work_dir=str(tmp_path_factory.mktemp("run")), **TINY)


@pytest.fixture(scope="module")
def saved(cfg: Config) -> Path:
    """Save the state of a run after one update."""
    agent, generator = TDMPC2(cfg), torch.Generator().manual_seed(0)
    obs = torch.randn(4, 8, 24, generator=generator)
    action, reward = torch.rand(3, 8, 6, generator=generator), torch.rand(3, 8, 1, generator=generator)
    agent.update(Batch(obs, action, reward, torch.full((8,), 8)))
    run_dir.save(agent, cfg.run_dir, 1, "abc", wall_seconds=1.0, parts={"replay": {"filled": 3}})
    return cfg.run_dir / "state.pt"


def test_state_of_a_run_is_read_as_it_was_saved(cfg: Config, saved: Path) -> None:
    agent = TDMPC2(cfg)
    state = read_state(saved, agent)
    assert (state.step, state.wandb_id, state.wall_seconds, state.parts) == (1, "abc", 1.0, {"replay": {"filled": 3}})
    state.load_into(agent)
    assert agent.optim.state_dict()["state"][0]["step"] == 1


def _set(*keys: Any, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def _drop(*keys: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


WEIGHT = "_pi.2.weight"
ADAM = ("training", "optim", "state", 0)
WRONG: dict[str, tuple[Change, str]] = {
    **{f"no {name}": (_drop(name), f"{name} is missing") for name in ("weights", "training", "step", "wandb_id")},
    "another entry": (_set("other", value=1), "'other' is not an entry"),
    **{f"step {v}": (_set("step", value=v), "step is") for v in (None, -5, "four", float("nan"), True, 10**30)},
    "wandb_id": (_set("wandb_id", value="../x"), "wandb_id is '../x'"),
    "wall_seconds": (_set("wall_seconds", value=float("inf")), "wall_seconds is inf"),
    "parts": (_set("parts", value=[1]), r"parts is \[1\]"),
    "weights": (_set("weights", value=[1]), r"weights is \[1\]"),
    "no weight": (_drop("weights", WEIGHT), f"'{WEIGHT}' is missing"),
    "one more weight": (_set("weights", "x", value=torch.ones(1)), "'x' is none of this model"),
    "no tensor": (_set("weights", WEIGHT, value=1.0), f"'{WEIGHT}' is 1.0"),
    "other shape": (_set("weights", WEIGHT, value=torch.ones(2, 2)), rf"'{WEIGHT}' has shape \[2, 2\]"),
    "other dtype": (_set("weights", WEIGHT, value=torch.ones(12, 16).double()), "float64, expected"),
    "infinite": (_set("weights", WEIGHT, value=torch.full((12, 16), torch.inf)), "not finite"),
    "training": (_set("training", value=[1]), r"training is \[1\]"),
    "no optim": (_drop("training", "optim"), "training: optim is missing"),
    "optim": (_set("training", "optim", value={}), "optim: it lacks param_groups"),
    "groups": (_set("training", "optim", "param_groups", value=[]), "0 groups of parameters"),
    "group": (_set("training", "optim", "param_groups", 0, value=5), "of other parameters"),
    "group of a tensor": (
        _set("training", "optim", "param_groups", 0, "params", value=torch.ones(2)),
        "of other param",
    ),
    "group with a tensor": (
        _set("training", "optim", "param_groups", 0, "params", 0, value=torch.ones(2)),
        "of other parameters",
    ),
    "lr of a tensor": (_set("training", "optim", "param_groups", 0, "lr", value=torch.ones(2)), r"lr is tensor\("),
    "betas": (_set("training", "optim", "param_groups", 0, "betas", value="xx"), "betas is 'xx'"),
    "lr": (_set("training", "pi_optim", "param_groups", 0, "lr", value=1e9), "pi_optim: lr is 1000000000.0"),
    "parameter": (_set("training", "optim", "state", "a", value={}), "moments of parameter 'a'"),
    "parameter beyond": (_set("training", "optim", "state", 999, value={}), "moments of parameter 999"),
    "no moment": (_drop(*ADAM, "exp_avg"), "expected step, exp_avg and exp_avg_sq"),
    "moment's shape": (_set(*ADAM, "exp_avg", value=torch.ones(3)), r"exp_avg of parameter 0 has shape \[3\]"),
    "moment's step": (_set(*ADAM, "step", value=torch.tensor(-1.0)), "step of parameter 0 is -1"),
    "scale": (_set("training", "scale", value=torch.tensor([7.0])), r"scale: is a tensor of shape \[1\]"),
    "scale of 0": (_set("training", "scale", value=torch.tensor(0.0)), "scale: is 0, expected a finite number above 0"),
    "scale nan": (_set("training", "scale", value=torch.tensor(torch.nan)), "scale: is nan"),
    "generator": (_set("training", "generator", value=torch.ones(5056)), "generator: is a tensor"),
    "generator of zeros": (
        _set("training", "generator", value=torch.zeros(5056, dtype=torch.uint8)),
        "generator: is not the state",
    ),
    "distillation": (_set("training", "distillation", value="x"), "distillation is 'x'"),
    "updates": (_set("training", "distillation", "updates", value=-1), "updates is -1"),
    "loss": (_set("training", "distillation", "loss", value=torch.tensor(torch.nan)), "distillation: loss is nan"),
    "compiled": (_set("training", "compiled", value="yes"), "compiled is 'yes'"),
    "update_path": (_set("training", "update_path", value="slow"), "update_path is 'slow'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_state_with_wrong_entry_is_refused_before_anything_is_loaded(
    cfg: Config, saved: Path, tmp_path: Path, case: str
) -> None:
    """A missing or mistyped entry used to end in a traceback, or to change the training silently."""
    content = read_file(saved)
    change, words = WRONG[case]
    change(content)
    torch.save(content, tmp_path / "state.pt")
    agent = TDMPC2(cfg)
    before = [tensor.clone() for tensor in agent.model.state_dict().values()]
    with pytest.raises(ValueError, match=rf"state\.pt.*{words}.*set exp_name to start a new run") as error:
        run_dir.restore(agent, tmp_path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.model.state_dict().values(), strict=True))


def test_state_with_scales_of_tasks_is_read_and_one_of_other_tasks_refused(cfg: Config, tmp_path: Path) -> None:
    own = cfg.replace(value_scale="per_task", work_dir=str(tmp_path))
    agent = TDMPC2(own)
    agent.scale = 1.0 + torch.rand(len(own.task_specs))
    run_dir.save(agent, tmp_path, 1, None, wall_seconds=1.0)
    again = TDMPC2(own)
    run_dir.restore(again, tmp_path)
    assert torch.equal(again.scale, agent.scale)

    for wrong, words in ((agent.scale[1:], "has shape"), (torch.zeros_like(agent.scale), "has the value 0")):
        agent.scale = wrong
        run_dir.save(agent, tmp_path, 1, None, wall_seconds=1.0)
        with pytest.raises(ValueError, match=f"training: scale: {words}"):
            run_dir.restore(again, tmp_path)


@pytest.mark.parametrize("layout", ["in a larger storage", "every second byte"])
def test_state_with_generator_that_is_a_view_is_read(cfg: Config, saved: Path, tmp_path: Path, layout: str) -> None:
    """Other programs may share storages between tensors, but torch crashes on a generator state that is a view."""
    content = read_file(saved)
    state = content["training"]["generator"]
    larger = torch.zeros(2 * len(state), dtype=torch.uint8)
    content["training"]["generator"] = larger[len(state) :] if layout == "in a larger storage" else larger[::2]
    content["training"]["generator"].copy_(state)
    torch.save(content, tmp_path / "state.pt")
    agent = TDMPC2(cfg)
    run_dir.restore(agent, tmp_path)
    assert torch.equal(agent.generator.get_state(), state)


@pytest.mark.parametrize("values", ["negative", "nan"])
def test_state_with_impossible_moment_is_refused(cfg: Config, saved: Path, tmp_path: Path, values: str) -> None:
    content = read_file(saved)
    moment = content["training"]["optim"]["state"][0]["exp_avg_sq"]
    moment.flatten()[1] = -1.0 if values == "negative" else torch.nan
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"exp_avg_sq of parameter 0 has (the value -1|values that are not finite)"):
        read_state(tmp_path / "state.pt", TDMPC2(cfg))


@pytest.mark.parametrize("content", [{}, [1], 5, torch.ones(1)])
def test_state_that_is_none_is_refused(cfg: Config, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt"):
        read_state(tmp_path / "state.pt", TDMPC2(cfg))


def test_state_with_flipped_bit_is_refused(cfg: Config, saved: Path, tmp_path: Path) -> None:
    """A run used to resume silently from a state.pt with a flipped bit."""
    raw = bytearray(saved.read_bytes())
    moment = read_file(saved)["training"]["optim"]["state"][0]["exp_avg"]
    raw[raw.index(moment.numpy().tobytes()) + 2] ^= 0x40
    (tmp_path / "state.pt").write_bytes(raw)
    with pytest.raises(ValueError, match=r"state\.pt, record \S+: Bad CRC-32"):
        read_state(tmp_path / "state.pt", TDMPC2(cfg))


def test_part_that_refuses_its_state_is_one_line(cfg: Config, saved: Path) -> None:
    """If a part of the run cannot read its saved state, the message names the file and the part."""
    from tdmpc2.distributed import ProcessGroup
    from tdmpc2.training.saving import Saving

    class Part:
        def state(self) -> dict[str, Any]:
            return {}

        def load_state(self, state: Any) -> None:
            raise KeyError("rows")

    saving = Saving(TDMPC2(cfg), cfg, ProcessGroup(), run_dir_resumed({"replay": {}}))
    with pytest.raises(ValueError, match=r"state\.pt: replay is damaged \[KeyError: 'rows'\]"):
        saving.attach("replay", Part())


def run_dir_resumed(parts: dict[str, Any]) -> Any:
    from tdmpc2.training.resuming import Resumed

    return Resumed({}, parts=parts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", r"run\.json is damaged \[it holds \[1\], not an object\]"),
        ("null", r"run\.json is damaged"),
        ("5", r"run\.json is damaged"),
        ('{"data": 5}', r"run\.json: data is 5"),
        ('{"teacher_sha256": [1]}', r"run\.json: teacher_sha256 is \[1\]"),
        ('{"task_specs": 5}', r"run\.json cannot be continued by this version \(task_specs is a int"),
        ('{"distillation_targets": 5}', r"run\.json cannot be continued"),
        ('{"steps": NaN}', r"run\.json cannot be continued"),
    ],
)
def test_run_record_of_wrong_form_is_one_line(cfg: Config, tmp_path: Path, text: str, words: str) -> None:
    own = cfg.replace(work_dir=str(tmp_path))
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{words}.*set exp_name to start a new run"):
        run_record.check(own, None)


def test_settings_of_optimisers_are_the_configuration_s(cfg: Config, saved: Path) -> None:
    """An agent takes moments from a state, but learning rates from its configuration."""
    content = read_file(saved)["training"]
    content["optim"]["param_groups"][0]["lr"] = 5.0
    agent = TDMPC2(cfg)
    agent.load_training_state(content)
    assert agent.optim.param_groups[0]["lr"] == cfg.lr * cfg.enc_lr_scale


def test_save_and_check_of_a_record_agree(cfg: Config, tmp_path: Path) -> None:
    own = cfg.replace(work_dir=str(tmp_path / "run"))
    record, _ = run_record.check(own, "ab" * 32, {"chunk_0.pt": "1-00000000"})
    run_record.claim(own.run_dir, record)
    assert run_record.read_record(own.run_dir / "run.json").items() >= json.loads(json.dumps(record)).items()
    save_file(own.run_dir / "state.pt", {"step": 1}, overwrite=False)
    assert run_record.check(own, "ab" * 32, {"chunk_0.pt": "1-00000000"}) == (record, "")
