"""How long one action takes, from an observation on the processor to an action on it, and what faster budgets cost.

python benchmarks/latency.py mt30_1M_steps_045dist_fp16.pt --threads 2

For every precision, number of threads and planning budget (samples, iterations, horizon H): percentiles in ms of
`agent.act` for one observation, the control rate that the 95th allows, the speedup over the plain float32 planner with
the file's full budget, and the regret of the budget: how much less the float32 model values its plans than the full
plain plans, in standard deviations; negative is better; mean over observations of rollouts. Plans of another horizon
are compared by what the horizon of the file leaves: longer ones are cut, shorter ones continued with the policy prior.
All are timed in turns, the second of two actions: the first finds the caches filled by the agent before, as no control
loop does. Results: `name`, the budget, what its plans `start` from, `threads`, `plain_ms`, `fast_ms` (medians),
`p95_ms`, `p99_ms`, `hz`, `speedup`, `matmul_ms` and `regret` (null for the policy alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._harness import Run, Timings, make_parser, parse, print_table, report, take_turns
from benchmarks._inputs import student
from benchmarks.plan import product_run
from tdmpc2 import planner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.calibration import played_inputs

MINUTES = 2.5
FULL_MINUTES = 10
DISK_GB = 0

PLAIN = "plain"

BUDGETS: tuple[dict[str, Any], ...] = (
    {},
    {"num_samples": 128, "iterations": 4},
    {"planner": "fast"},
    {"num_samples": 256, "iterations": 6},
    {"num_samples": 256, "iterations": 3},
    {"num_samples": 128, "iterations": 3},
    {"num_samples": 64, "iterations": 3},
    {"num_samples": 128, "iterations": 3, "horizon": 2},
    {"num_samples": 128, "iterations": 3, "horizon": 5},
)


def plan_mean(agent: TDMPC2, obs: Tensor, task: Tensor | None, seed: int) -> Tensor:
    """Return the mean of the agent's plan at the start of episodes, [E, H, A]."""
    cfg, model = agent.cfg, agent.model
    context = model.context(task)
    noise = planner.draw_noise(cfg, len(obs), obs.device, torch.Generator(obs.device).manual_seed(seed))
    start = obs.new_zeros(len(obs), cfg.horizon, cfg.action_dim)
    return agent.planner(model.encode(obs, context), context, start, noise, eval_mode=True).mean


def fitted(model: WorldModel, mean: Tensor, obs: Tensor, task: Tensor | None) -> Tensor:
    """Cut sequences [E, H', A] to the horizon of the model, or continue them with the policy's mean, [E, H, A]."""
    context = model.context(task)
    z = model.encode(obs, context)
    actions = list(mean[:, : model.cfg.horizon].unbind(1))
    for t in range(model.cfg.horizon):
        if t == len(actions):
            actions.append(model.policy_mean(z, context))
        z = model.next(z, actions[t], context)
    return torch.stack(actions, 1)


def values(model: WorldModel, actions: Tensor, obs: Tensor, task: Tensor | None) -> Tensor:
    """Return the model's values of sequences [E, S, H, A], [E, S]."""
    context = model.context(task)
    eps = actions.new_zeros(*actions.shape[:2], model.cfg.action_dim)
    heads = torch.arange(model.cfg.num_q, device=obs.device)
    z = model.encode(obs, context)
    return planner.estimate_value(model, z, context.unsqueeze(1), actions.transpose(1, 2), eps, heads)


def regrets(reference: TDMPC2, agents: list[TDMPC2], obs: Tensor, task: Tensor | None) -> list[float]:
    """Return the mean regret of every agent's plans (see above)."""
    model, mask = reference.model, reference.model.context(task).action_mask
    drawn = 2 * torch.rand(len(obs), 512, model.cfg.horizon, model.cfg.action_dim, device=obs.device) - 1
    drawn = drawn if mask is None else drawn * mask[:, None, None]
    spread = values(model, drawn, obs, task).std(-1)  # of actions drawn at random
    sequences = [fitted(model, plan_mean(agent, obs, task, seed=1), obs, task) for agent in (reference, *agents)]
    found = values(model, torch.stack(sequences, 1), obs, task)  # [E, 1 + n]
    return ((found[:, :1] - found[:, 1:]) / spread[:, None]).mean(0).tolist()


def act_run(agent: TDMPC2, obs: np.ndarray, task: int | None) -> Run:
    """Return a function that acts once, after the first action of an episode."""
    agent.act(obs, t0=True, eval_mode=True, task=task)
    return partial(agent.act, obs, eval_mode=True, task=task)


def name_of(precision: str, budget: dict[str, Any]) -> str:
    """Name an agent as in the results."""
    return f"{precision} {' '.join(f'{key}={value}' for key, value in budget.items()) or 'full'}"


def load_agents(
    path: Path, plain: TDMPC2, precisions: list[str], budgets: Sequence[dict[str, Any]]
) -> dict[str, TDMPC2]:
    """Load an agent of each precision and budget, and one of each precision that does not plan."""
    agents: dict[str, TDMPC2] = {}
    for precision in precisions:
        for budget in budgets:
            keys: dict[str, Any] = {**budget, "compile": "true"}  # elites follow the samples
            agent = load_agent(path, device=str(plain.device), precision=precision, **keys)
            agent.compile_planner()
            agents[name_of(precision, budget)] = agent
        alone = load_agent(path, device=str(plain.device), precision=precision, mpc=False)
        agents[f"{precision} policy alone"] = alone
    return agents


def result_of(name: str, cfg: Config, times: Timings, regret: float | None) -> dict[str, Any]:
    """Return what one agent's actions took; its budget has keys and columns of its own, so that rows differ."""
    budget = (cfg.num_samples, cfg.plan_iterations, cfg.horizon, cfg.plan_start) if cfg.mpc else ("policy", *[None] * 3)
    p95, p99 = 1e3 * np.percentile(times.seconds[name], [95, 99])
    products = f"products of {name}"
    return {
        "name": name,
        "format": name.split()[0],
        **dict(zip(("samples", "iterations", "horizon", "start"), budget, strict=True)),
        "threads": torch.get_num_threads(),
        "plain_ms": times.ms(PLAIN),
        "fast_ms": times.ms(name),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "hz": 1e3 / float(p95),
        "speedup": times.speedup(name),
        "matmul_ms": times.ms(products) if products in times.seconds else None,
        "regret": regret,
    }


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=100, device="auto")
    parser.add_argument("checkpoint", nargs="?", type=Path, help="(default: a trained student that is here, or random)")
    parser.add_argument("--threads", type=int, nargs="+", help="(default: 1 and all cores)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--budgets", type=int, default=4, help="only the first so many (default: 4, all with --full)")
    parser.add_argument("--plans", type=int, default=48, help="observations for the regret (default: %(default)s)")
    args = parse(parser, argv, {"budgets": len(BUDGETS)}, threads=[1], precisions=["fp32", "int8"], budgets=2, plans=4)
    with student(args) as path:
        plain = load_agent(path, device=args.device, precision="fp32", compile="false")
        agents = load_agents(path, plain, args.precisions, BUDGETS[: args.budgets])
    planning = {name: agent for name, agent in agents.items() if agent.cfg.mpc}

    inputs = played_inputs(plain.model, args.plans)
    rows = torch.arange(args.plans) * len(inputs.obs) // args.plans
    obs, task = inputs.obs[rows].to(plain.device), None if inputs.task is None else inputs.task[rows].to(plain.device)
    regret = dict(zip(planning, regrets(plain, list(planning.values()), obs, task), strict=True))

    one, one_task = obs[0].cpu().numpy(), None if task is None else int(task[0])
    products = {
        f"products of {name}": product_run(agent.cfg, agent.precision, 1, agent.device)
        for name, agent in planning.items()
    }
    columns = [
        ("type", "format", ""), ("samples", "samples", ""), ("iter.", "iterations", ""), ("H", "horizon", ""),
        ("start", "start", ""), ("median ms", "fast_ms", ".2f"), ("p95", "p95_ms", ".2f"),
        ("p99", "p99_ms", ".2f"), ("Hz", "hz", ".0f"), ("speedup", "speedup", ".1f"),
        ("regret", "regret", ".2f"),
    ]  # fmt: skip
    results: list[dict[str, Any]] = []
    counts = args.threads if isinstance(args.threads, list) else [1, args.threads]  # by default all cores
    for threads in sorted(set(counts)):
        torch.set_num_threads(threads)
        runs = {PLAIN: act_run(plain, one, one_task)}
        runs |= {name: act_run(agent, one, one_task) for name, agent in agents.items()}
        runs |= products
        label = f"{threads} thread{'s' * (threads > 1)}"
        times = take_turns(
            runs, args.repeats, prepare=runs, device=plain.device, label=label, limit=args.limit, least=20
        )
        results += [result_of(name, agent.cfg, times, regret.get(name)) for name, agent in agents.items()]
        print_table(results[-len(agents) :], columns, title=label)
    report("latency", args, results)


if __name__ == "__main__":
    main()
