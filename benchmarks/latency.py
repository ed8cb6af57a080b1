"""How long one action takes, from an observation on the processor to an action on it, and what faster budgets cost.

python benchmarks/latency.py ../shared/checkpoints/mt30_1M_steps_045dist_fp16.pt --threads 2

For every precision, number of threads and planning budget: percentiles in ms of `agent.act` for one observation, the
control rate that the 95th allows, the speedup over the plain float32 planner with the file's full budget, and the
regret of the budget (tdmpc2/quantization/regret.py: how much less the float32 model values its plans than the full
plain plans, in standard deviations; negative is better; mean over observations of rollouts). Plans of another
horizon are compared by what the horizon of the file leaves: longer ones are cut, shorter ones continued with the policy
prior. All are timed in turns, the second of two actions: the first finds the caches filled by the agent before, as no
control loop does.
The last line is JSON: `cases`, a list with `name`, `threads`, `plain_ms`, `fast_ms` (medians), `p95_ms`, `p99_ms`,
`speedup`, `matmul_ms` (null for the policy alone) and `regret`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.plan import product_run
from tdmpc2 import planner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.calibration import played_inputs
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.tracking.progress import progress

BUDGETS: tuple[dict[str, int], ...] = (
    {},
    {"num_samples": 256, "iterations": 6},
    {"num_samples": 256, "iterations": 3},
    {"num_samples": 128, "iterations": 3},
    {"num_samples": 64, "iterations": 3},
    {"num_samples": 128, "iterations": 3, "horizon": 2},
    {"num_samples": 128, "iterations": 3, "horizon": 5},
)


def budget_keys(budget: dict[str, int], cfg: Config) -> dict[str, int]:
    """A budget with as large a share of elites and policy samples as the file's."""
    if "num_samples" not in budget:
        return budget
    share = budget["num_samples"] / cfg.num_samples
    return {
        **budget,
        "num_elites": max(4, round(share * cfg.num_elites)),
        "num_pi_trajs": max(2, round(share * cfg.num_pi_trajs)),
    }


def plan_mean(agent: TDMPC2, obs: Tensor, task: Tensor | None, seed: int) -> Tensor:
    """Mean of the agent's plan at the start of episodes, [E, H, A]."""
    cfg, model = agent.cfg, agent.model
    context = model.context(task)
    noise = planner.draw_noise(cfg, len(obs), obs.device, torch.Generator(obs.device).manual_seed(seed))
    start = obs.new_zeros(len(obs), cfg.horizon, cfg.action_dim)
    return agent.planner(model.encode(obs, context), context, start, noise, eval_mode=True).mean


def fitted(model: WorldModel, mean: Tensor, obs: Tensor, task: Tensor | None) -> Tensor:
    """Sequences [E, H', A] cut, or continued with the policy's mean, to the horizon of the model, [E, H, A]."""
    context = model.context(task)
    z = model.encode(obs, context)
    actions = list(mean[:, : model.cfg.horizon].unbind(1))
    for t in range(model.cfg.horizon):
        if t == len(actions):
            actions.append(model.policy_mean(z, context))
        z = model.next(z, actions[t], context)
    return torch.stack(actions, 1)


def values(model: WorldModel, actions: Tensor, obs: Tensor, task: Tensor | None) -> Tensor:
    """The model's values of sequences [E, S, H, A], [E, S]."""
    context = model.context(task)
    eps = actions.new_zeros(*actions.shape[:2], model.cfg.action_dim)
    heads = torch.arange(model.cfg.num_q, device=obs.device)
    z = model.encode(obs, context)
    return planner.estimate_value(model, z, context.unsqueeze(1), actions.transpose(1, 2), eps, heads)


def regrets(reference: TDMPC2, agents: list[TDMPC2], obs: Tensor, task: Tensor | None) -> list[float]:
    """Mean regret of every agent's plans (see above)."""
    model, mask = reference.model, reference.model.context(task).action_mask
    drawn = 2 * torch.rand(len(obs), 512, model.cfg.horizon, model.cfg.action_dim, device=obs.device) - 1
    drawn = drawn if mask is None else drawn * mask[:, None, None]
    spread = values(model, drawn, obs, task).std(-1)  # of actions drawn at random
    sequences = [fitted(model, plan_mean(agent, obs, task, seed=1), obs, task) for agent in (reference, *agents)]
    found = values(model, torch.stack(sequences, 1), obs, task)  # [E, 1 + n]
    return ((found[:, :1] - found[:, 1:]) / spread[:, None]).mean(0).tolist()


def act_run(agent: TDMPC2, obs: np.ndarray, task: int | None) -> Callable[[], Any]:
    """One action, after the first of an episode."""
    agent.act(obs, t0=True, eval_mode=True, task=task)
    return lambda: agent.act(obs, eval_mode=True, task=task)


def name_of(precision: str, budget: dict[str, int]) -> str:
    return f"{precision} {' '.join(f'{key}={value}' for key, value in budget.items()) or 'full'}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, set_num_threads(None)])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--plans", type=int, default=48, help="observations for the regret")
    args = parser.parse_args()

    plain = load_agent(args.checkpoint, precision="fp32", compile="false")
    agents: dict[str, TDMPC2] = {}
    for precision in args.precisions:
        for budget in BUDGETS:
            keys: dict[str, Any] = dict(budget_keys(budget, plain.cfg))
            agent = load_agent(args.checkpoint, precision=precision, compile="true", **keys)
            agent.compile_planner()
            agents[name_of(precision, budget)] = agent
        agents[f"{precision} policy alone"] = load_agent(args.checkpoint, precision=precision, mpc=False)
    planning = {name: agent for name, agent in agents.items() if agent.cfg.mpc}

    inputs = played_inputs(plain.model, args.plans)
    rows = torch.arange(args.plans) * len(inputs.obs) // args.plans
    obs, task = inputs.obs[rows].to(plain.device), None if inputs.task is None else inputs.task[rows].to(plain.device)
    found = dict(zip(planning, regrets(plain, list(planning.values()), obs, task), strict=True))

    one, one_task = obs[0].cpu().numpy(), None if task is None else int(task[0])
    products = {name: product_run(agent.cfg, agent.precision, 1, agent.device) for name, agent in planning.items()}
    table = Table("planner", "threads", "median ms", "p95", "p99", "Hz at p95", "speedup", "regret", box=box.SIMPLE)
    cases = []
    for threads in sorted(set(args.threads)):
        torch.set_num_threads(threads)
        runs = {"plain": act_run(plain, one, one_task)}
        runs |= {name: act_run(agent, one, one_task) for name, agent in agents.items()}
        runs |= {f"products of {name}": run for name, run in products.items()}
        seconds = np.zeros((args.repeats + 2, len(runs)))
        for turn in progress(range(len(seconds)), f"{threads} threads", unit="turns"):
            for index, run in enumerate(runs.values()):
                run()
                start = time.perf_counter()
                run()
                seconds[turn, index] = time.perf_counter() - start
        times = dict(zip(runs, 1e3 * seconds[2:].T, strict=True))
        for name in agents:
            median, p95, p99 = np.percentile(times[name], [50, 95, 99])
            case = {
                "name": name,
                "threads": threads,
                "plain_ms": float(np.median(times["plain"])),
                "fast_ms": float(median),
                "p95_ms": float(p95),
                "p99_ms": float(p99),
                "speedup": float(np.median(times["plain"] / times[name])),
                "matmul_ms": float(np.median(times[f"products of {name}"])) if name in products else None,
                "regret": found.get(name),
            }
            cases.append(case)
            regret = "" if case["regret"] is None else f"{case['regret']:.3f}"
            cells = [f"{median:.2f}", f"{p95:.2f}", f"{p99:.2f}", f"{1e3 / p95:.0f}", f"{case['speedup']:.1f}", regret]
            table.add_row(name, str(threads), *cells)
    get_console().print(table)
    print(json.dumps({"torch": torch.__version__, "repeats": args.repeats, "inputs": inputs.source, "cases": cases}))


if __name__ == "__main__":
    main()
