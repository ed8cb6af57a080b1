"""Exported files in ONNX Runtime act as the plain model, and say what has to be known to use them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tdmpc2.acceleration.low_precision import LowPrecisionLinear
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import Config
from tdmpc2.export.check import NETWORKS, Runtime, in_float64
from tdmpc2.export.graph import PlanStep, PolicyStep, Step
from tdmpc2.export.onnx_file import ENDING, export, model_of, read_card
from tdmpc2.export.request import Request, load
from tdmpc2.export.step_files import target_files
from tdmpc2.nn.world_model import WorldModel
from tests.export.conftest import TASKS
from tests.export.test_graph import given
from tests.helpers.agents import small_config
from tests.helpers.checkpoints import published_file
from tests.helpers.termination import balance


def assert_same(step: Step, path: Path, seeds: int = 8) -> None:
    """Check that the file computes what the step computes, for a few inputs."""
    runtime = Runtime(path)
    for seed in range(seeds):
        inputs = given(step, seed)
        for got, expected in zip(runtime(inputs), step(*inputs.values()), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=NETWORKS)


def test_policy_in_onnx_runtime_is_the_plain_policy(request_of: Request, files: dict[str, Path]) -> None:
    assert_same(PolicyStep(load(request_of).model), files["policy"])


def test_plan_in_onnx_runtime_is_the_plain_plan(request_of: Request, files: dict[str, Path]) -> None:
    """The elite chosen by Gumbel noise is compared, too; with so few sequences no last bit decides."""
    assert_same(PlanStep(load(request_of).model), files["plan"])


def test_card_in_the_metadata_has_what_a_robot_needs(request_of: Request, files: dict[str, Path]) -> None:
    card = read_card(files["plan"])
    assert [task["name"] for task in card["tasks"]] == list(TASKS)
    spin, walk, _ = card["tasks"]
    assert (spin["obs_dim"], spin["action_dim"], spin["episode_length"]) == (3, 1, 500)
    assert walk["discount"] == pytest.approx(0.99)
    assert [actuator["name"] for actuator in walk["environment"]["actuators"]] == [
        "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    ]  # fmt: skip
    assert list(walk["environment"]["observations"]) == ["orientations", "height", "velocity"]
    assert (card["step"], card["envs"], card["precision"]) == ("plan", 1, "fp32")
    budget = card["budget"]
    assert (budget["horizon"], budget["num_samples"], budget["iterations"]) == (1, 16, 1)
    assert card["checkpoint"]["sha256"] == file_sha256(request_of.checkpoint)
    assert (card["checkpoint"]["file"], card["checkpoint"]["step"]) == ("model.pt", 7)


def test_card_lists_the_inputs_and_outputs_of_the_graph(files: dict[str, Path]) -> None:
    for path in files.values():
        session, card = Runtime(path).session, read_card(path)
        for side, entries in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            listed = [(entry["name"], entry["shape"]) for entry in card[side]]
            assert listed == [(entry.name, entry.shape) for entry in entries]


def test_file_says_nothing_of_the_machine_that_wrote_it(files: dict[str, Path], request_of: Request) -> None:
    """The exporter would note source lines with their paths on every node."""
    for path in files.values():
        content = path.read_bytes()
        assert b".py" not in content
        assert str(request_of.checkpoint.parent).encode() not in content


def test_file_holds_every_weight_once(files: dict[str, Path], request_of: Request) -> None:
    """Constant folding would store a transposed copy of the weights for every iteration."""
    model = load(request_of).model
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("_target_Qs")}
    stored = sum(weight.nbytes for name, weight in own.items() if not name.startswith(("_task_emb", "_termination")))
    initialisers = onnx.load(files["plan"]).graph.initializer
    held = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in initialisers)
    assert abs(held - stored) < 3000


@pytest.mark.slow
def test_int8_file_is_the_plain_model_with_int8_weights(model_file: Path, tmp_path: Path) -> None:
    request = Request(model_file, task="walker-walk", precision="int8", out=tmp_path)
    source = load(request)
    step = PolicyStep(source.model)
    path = tmp_path / "policy.onnx"
    model = model_of(step, {})
    path.write_bytes(model.SerializeToString())
    assert_same(step, path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["model._pi.1.weight"] == onnx.TensorProto.INT8
    inputs = given(step)
    exact, _ = PolicyStep(source.reference)(*inputs.values())
    assert 0 < (step(*inputs.values())[0] - exact).abs().max() < 0.1


def test_reference_of_int8_policies_is_computed_in_float64(model_file: Path) -> None:
    """It was rounded to float32 in every layer, as what it judges."""
    step = PolicyStep(load(Request(model_file, task="walker-walk", precision="int8")).model)
    exact, widened = in_float64(step), copy.deepcopy(step).double()
    for layer in (layer for layer in widened.modules() if isinstance(layer, LowPrecisionLinear)):
        if layer.scale is not None:
            layer.weight = torch.nn.Parameter(layer.weight.double() * layer.scale, requires_grad=False)
            layer.scale = None
    inputs = [x.double() if x.is_floating_point() else x for x in given(step).values()]
    torch.testing.assert_close(exact(*inputs), widened(*inputs), rtol=0, atol=1e-13)


def random_model(cfg: Config) -> WorldModel:
    model = TDMPC2(cfg).model.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3, generator=generator)
    return model


KINDS: dict[str, dict[str, Any]] = {
    "several iterations": {"task": "pendulum-spin", "iterations": 2, "horizon": 3},
    "several environments": {"task": "mt30"},
    "images": {"task": "walker-walk", "obs": "rgb", "num_channels": 4},
    "images and state": {"task": "walker-walk", "obs": "rgb+state", "num_channels": 4},
    "plan's mean": {"task": "pendulum-spin", "plan_action": "mean", "num_q": 2},
    "from the policy": {"task": "pendulum-spin", "plan_start": "policy"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_plan_of_every_kind_of_model_is_the_plain_one(kind: str, tmp_path: Path) -> None:
    model = random_model(small_config(**{"iterations": 1, "horizon": 1, **KINDS[kind]}))
    step, path = PlanStep(model, num_envs=1 + model.cfg.multitask), tmp_path / "plan.onnx"
    path.write_bytes(model_of(step, {}).SerializeToString())
    assert_same(step, path, 4)


@pytest.mark.slow
def test_plan_of_tasks_that_may_terminate_is_the_plain_one(tmp_path: Path) -> None:
    """Plans differ from those of a model that never predicts termination."""
    model = random_model(small_config(task="cheetah-run", episodic=True, iterations=1, horizon=2))
    actions = torch.rand(1, 2, 200, model.cfg.action_dim, generator=torch.Generator().manual_seed(2)) * 2 - 1
    balance(model, model.encode(torch.zeros(1, model.cfg.obs_dim)), model.context(None), actions)
    step, path = PlanStep(model), tmp_path / "plan.onnx"
    path.write_bytes(model_of(step, {}).SerializeToString())
    assert_same(step, path, 4)
    endless = copy.deepcopy(step)
    endless.model._termination[-1].bias.fill_(-1e4)
    plans = [(step(*inputs.values())[1], endless(*inputs.values())[1]) for inputs in (given(step, i) for i in range(4))]
    assert min(float((one - other).abs().max()) for one, other in plans) > 0.01


@pytest.mark.slow
def test_published_student_passes_its_check(tmp_path: Path) -> None:
    """The budget is small because tracing the student's own one takes minutes; the networks are the same."""
    request = Request(
        published_file("fp16"), tasks=("walker-walk", "pendulum-spin"), out=tmp_path, check=True, steps=4,
        overrides={"num_samples": 64, "iterations": 1},
    )  # fmt: skip
    assert export(request)
    card = read_card(target_files(request, ENDING)["plan"])
    assert card["budget"]["num_elites"] == 8
    assert card["action"] == {"size": 6, "low": -1.0, "high": 1.0}
