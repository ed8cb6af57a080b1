"""Choose the weight matrices that can be int8, by what one of them in int8 does to the outputs on real inputs."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdmpc2.acceleration.low_precision import planning_format, set_precision
from tdmpc2.config import Config
from tdmpc2.data.placement import open_data
from tdmpc2.data.source import STORE, find_form
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.play.actors import noisy_actor, random_actor
from tdmpc2.play.rollout import Actor, Floats, Job, play
from tdmpc2.quantization.recipes import RECIPES, Recipe, is_matrix, model_outputs, relative_db
from tdmpc2.tracking.progress import progress

COUNT = 240  # rows of inputs by default
LIMIT_DB = -40.0  # an error of 1 % of the output
_EVERY = 16  # steps from one row to the next: neighbouring ones are alike, and the first ones are of no walking
_NOISE = 0.3  # standard deviation of the noise on the policy's actions
_EPISODES = 20  # episodes of each task that rows of data are drawn from, at most
_MOST = 16  # matrices to choose from, so that all 65,536 choices can be compared


# -- inputs -----------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """Observations and actions to compute a model's outputs for, and in words where they come from."""

    obs: Tensor  # [N, O]
    action: Tensor  # [N, A], zero where a task has no such entry
    task: Tensor | None  # [N]; None for single-task models
    source: str

    def rows(self, rows: Tensor) -> Inputs:
        """Select some of the rows."""
        task = None if self.task is None else self.task[rows]
        return self._replace(obs=self.obs[rows], action=self.action[rows], task=task)

    def to(self, device: torch.device) -> Inputs:
        """Copy them to another device."""
        task = None if self.task is None else self.task.to(device)
        return self._replace(obs=self.obs.to(device), action=self.action.to(device), task=task)


def played_inputs(model: WorldModel, count: int = COUNT, seed: int = 0) -> Inputs:
    """Play episodes of the model's own tasks and take every sixteenth step: ``count`` rows or more, alike of each task.

    Half of a task's rows are from episodes of the model's policy prior with noise, half from random actions. Tasks
    whose environment cannot be built here are left out; if none can, the observations are standard-normal.

    Args:
        model: its configuration names the tasks (``tasks``).
        count: rows.
        seed: of environments and actions.
    """
    from tdmpc2.envs import check_task  # the environment layer is loaded only here, where it is played

    cfg = model.cfg
    refused: dict[int, str] = {}
    for task_id in cfg.task_ids:  # first of all, because the others have to give more rows
        with _refusals(refused, task_id):
            check_task(cfg.task_names[task_id])
    tasks = [task_id for task_id in cfg.task_ids if task_id not in refused]
    half = math.ceil(count / 2 / max(len(tasks), 1))
    actors = noisy_actor(cfg, policy_actor(model), _NOISE, seed), random_actor(cfg, seed)
    rows: list[tuple[Floats, Floats, int]] = []
    for task_id in progress(tasks, "Playing inputs", unit="tasks"):
        with _refusals(refused, task_id):
            rows += _played(cfg, actors, task_id, half, seed)
    source = f"{len(rows)} rows of {len(cfg.task_ids) - len(refused)} tasks, played half by the policy, half at random"
    reason = next(iter(refused.values()), "")
    if refused and rows:
        source += f"; {len(refused)} tasks left out: {reason}"
    if not rows:
        ids = np.resize(cfg.task_ids, count)
        if cfg.observes_images:
            raise ValueError(f"obs={cfg.obs}: {cfg.task} cannot be played here, and images cannot be made up: {reason}")
        obs = np.random.default_rng(seed).standard_normal((count, cfg.obs_dim), np.float32)
        rows = list(zip(obs, actors[1](obs, ids == ids, ids), ids, strict=True))
        source = f"{count} standard-normal rows, because no task could be played here: {reason}"
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return Inputs(columns[0], columns[1], columns[2] if cfg.multitask else None, source)


def _played(
    cfg: Config, actors: Iterable[Actor], task_id: int, count: int, seed: int
) -> list[tuple[Floats, Floats, int]]:
    """Play ``count`` rows by each of the actors."""
    from tdmpc2.envs.vector import EnvPool

    rows: list[tuple[Floats, Floats, int]] = []
    with EnvPool(cfg.obs_dim, cfg.action_dim, cfg.obs) as pool:
        for number, actor in enumerate(actors, 1):
            while missing := number * count - len(rows):
                job = Job(task_id, seed + 1000 * task_id + len(rows))  # tasks of one domain start alike
                (episode,) = play(cfg, actor, [job], max_steps=_EVERY * missing, pool=pool)
                rows += [(o, a, task_id) for o, a in zip(episode.obs[:-1], episode.action[1:], strict=True)][::_EVERY]
    return rows


@contextlib.contextmanager
def _refusals(refused: dict[int, str], task_id: int) -> Iterator[None]:
    """Note why a task cannot be played here, and go on."""
    from gymnasium.error import Error

    try:
        yield
    except (ImportError, ValueError, Error) as error:
        refused[task_id] = str(error).partition(". ")[0]


def policy_actor(model: WorldModel) -> Actor:
    """Act by the mean of the policy prior."""

    @torch.no_grad()
    def act(obs: Floats, t0: np.ndarray, task_ids: np.ndarray) -> Floats:
        device = model.bins.device
        task = torch.from_numpy(task_ids).to(device) if model.cfg.multitask else None
        return model.policy_mean(model.encode(torch.from_numpy(obs).to(device), task), task).cpu().numpy()

    return act


def stored_inputs(cfg: Config, data_dir: str, count: int = COUNT, seed: int = 0) -> Inputs:
    """Draw rows of an episode store or of chunk files, of the model's own tasks, all equally likely.

    Args:
        cfg: configuration of the model; it names the tasks (``tasks``).
        data_dir: directory of the data.
        count: rows.
        seed: of the choice.

    Raises:
        ValueError: no data, damaged data, data of another task set, or a task without an episode.
    """
    if cfg.observes_images:
        raise ValueError(
            f"obs={cfg.obs}: --data {data_dir} holds states, no images. Leave it out: inputs are then played"
        )
    cfg = cfg.replace(data_dir=data_dir, task_balance="tasks", max_episodes_per_task=_EPISODES)
    place = "disk" if find_form(data_dir)[1] == STORE else "cpu"  # so few rows of a store are best left there
    batch = open_data(cfg, torch.device("cpu"), place).sampler.draw(0, count, 1, seed)
    source = f"{count} rows of {len(cfg.task_ids)} tasks from {data_dir}"
    return Inputs(batch.obs[0], batch.action[0], batch.task if cfg.multitask else None, source)


# -- sensitivity ------------------------------------------------------------------------------------------------------


class Sensitivity(NamedTuple):
    """Errors of a float32 model with one weight matrix in int8."""

    matrix: str  # its name
    bytes_saved: int  # of an fp16 file
    errors: dict[str, float]  # dB by output, see tdmpc2.quantization.recipes.output_errors


@torch.no_grad()
def sensitivities(model: WorldModel, inputs: Inputs) -> list[Sensitivity]:
    """Measure every weight matrix alone in int8, as it would be computed: with int8 inputs, or widened.

    Args:
        model: float32, on the device it is to act on; not changed.
        inputs: on that device.
    """
    expected = model_outputs(model, *inputs[:3])
    state = model.state_dict()
    matrices = [n for n, w in state.items() if not n.startswith("_target_Qs.") and is_matrix(n, w)]
    found = []
    for name in progress(matrices, "Measuring int8 errors", unit="matrices"):
        got = model_outputs(_with_int8(model, name), *inputs[:3])
        weight = state[name]
        saved = weight.numel() - 4 * weight.numel() // weight.shape[-1]  # a float32 scale for each row
        found.append(Sensitivity(name, saved, {key: relative_db(got[key], output) for key, output in expected.items()}))
    return found


def _with_int8(model: WorldModel, matrix: str) -> WorldModel:
    """Copy a model, sharing its weights, with one matrix in int8."""
    shared = {id(tensor): tensor.detach() for tensor in (*model.parameters(), *model.buffers())}
    int8 = "int8-weight-only" if matrix.startswith("_encoder.") else planning_format("int8", matrix)
    return set_precision(copy.deepcopy(model, shared), lambda name: int8 if name == matrix else "fp32")


def mixed_recipe(found: Sequence[Sensitivity], limit_db: float = LIMIT_DB) -> Recipe:
    """Make the recipe ``mixed``: the most bytes in int8 that keep the predicted error of every output within a limit.

    All choices are compared, among those that save the most bytes the one with the smallest errors is taken. The
    encoder's first matrix, whose inputs are raw observations, is never int8. What is not int8 has an error of its own,
    bf16's or fp16's, which is not counted.

    Args:
        found: see :func:`sensitivities`.
        limit_db: of every output's error, in dB relative to its RMS.
    """
    open_to_choice = [s for s in found if s.matrix not in RECIPES["int8"].not_int8]
    largest = sorted(open_to_choice, key=lambda s: -s.bytes_saved)[:_MOST]
    budget = 10 ** (limit_db / 10)
    candidates = [s for s in largest if (_power(s.errors) <= budget).all()]
    choices = np.arange(2 ** len(candidates))[:, None] >> np.arange(len(candidates)) & 1  # [2^n, n]
    outputs = max((len(s.errors) for s in found), default=1)
    power = choices @ np.array([_power(s.errors) for s in candidates]).reshape(-1, outputs)  # [2^n, outputs]
    saved = choices @ np.array([s.bytes_saved for s in candidates], np.int64)
    saved = np.where((power <= budget).all(1), saved, -1)
    best = np.flatnonzero(saved == saved.max())
    best = best[power[best].max(1).argmin()]
    return Recipe("mixed", frozenset(s.matrix for s, chosen in zip(candidates, choices[best], strict=True) if chosen))


def _power(errors: dict[str, float]) -> np.ndarray:
    """Errors relative to the output, squared, [outputs]."""
    return 10 ** (np.array(list(errors.values())) / 10)
