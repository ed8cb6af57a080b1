"""See whether rare rewards are learned from images, with the encoder fitted to them and without (fit_encoder).

python benchmarks/rare_rewards.py                                      # cup-catch, a model of 1M
python benchmarks/rare_rewards.py --task finger-spin --model-size 5    # another task or size

Random episodes (pink noise) are played once; models learn from them by updates alone. Results: `name`, `updates`,
`order` (the share of pairs of a rewarded and an unrewarded step that the predicted rewards put in their order; 0.5:
nothing is known), the mean prediction of `rewarded` and of `unrewarded` steps, and the `variance` of latent states
between these steps, as a mean over their dimensions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._harness import make_parser, parse, report, skip
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.ring import ReplayRing
from tdmpc2.nn.math import decode
from tdmpc2.play.actors import pink_actions
from tdmpc2.play.rollout import Episode, Job, play
from tdmpc2.tracking.progress import progress
from tdmpc2.training.learner import fit_encoder
from tdmpc2.training.ring import make_ring

MINUTES = 8
FULL_MINUTES = 30
BY_NAME = True
DISK_GB = 0

STEPS = 100  # of each kind that predictions are made of


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1, threads=1)
    parser.add_argument("--task", default="cup-catch", help="(default: %(default)s)")
    parser.add_argument("--model-size", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--updates", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    args = parse(parser, argv, {"updates": 4000}, task="cartpole-swingup", episodes=1, updates=2, batch_size=4)
    cfg = Config(
        task=args.task, mode="online", obs="rgb", model_size=args.model_size, batch_size=args.batch_size,
        steps=500 * args.episodes + 1, update_precision="bf16", save_agent=False, device=args.device,
    )  # fmt: skip
    ring = make_ring(cfg, torch.device("cpu"))
    steps = known_steps(record(cfg, ring, args.episodes))
    if not len(steps["rewarded"][0]):
        skip(f"no reward was found in {args.episodes} episodes of {args.task}: more --episodes")
    results = [row for fitted in (False, True) for row in learn(cfg, ring, steps, fitted, args)]
    columns = [("encoder", "name", ""), ("updates", "updates", ","), ("order", "order", ".3f")]
    columns += [("rewarded", "rewarded", ".3f"), ("unrewarded", "unrewarded", ".3f"), ("variance", "variance", ".1e")]
    report("rare_rewards", args, results, columns)


def record(cfg: Config, ring: ReplayRing, count: int) -> list[Episode]:
    """Play random episodes, and store them."""
    turn, episodes = 0, []

    def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        nonlocal turn
        turn += 1
        return pink_actions(cfg, task_ids, turn)

    for seed in progress(range(count), "Playing", unit="episodes"):
        (episode,) = play(cfg, act, [Job(0, seed)])
        ring.add(episode.obs, episode.action, episode.reward, 0, episode.terminated)
        episodes.append(episode)
    return episodes


def known_steps(episodes: Sequence[Episode]) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw steps with a reward and without: images [N, C, H, W] before, and actions [N, A]."""
    rng, found = np.random.default_rng(1), {}
    places = np.array([(e, t) for e, one in enumerate(episodes) for t in range(1, len(one.reward))])
    reward = np.array([episodes[e].reward[t] for e, t in places])
    for name, wanted in (("rewarded", reward > 0.5), ("unrewarded", reward <= 0.5)):
        some = rng.permutation(places[wanted])[:STEPS]
        images = np.array([episodes[e].obs[t - 1] for e, t in some])
        found[name] = torch.from_numpy(images), torch.from_numpy(np.array([episodes[e].action[t] for e, t in some]))
    return found


def learn(
    cfg: Config, ring: ReplayRing, steps: dict[str, tuple[Tensor, Tensor]], fitted: bool, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train a model, and yield what it predicts before and at each quarter of the way."""
    agent = TDMPC2(cfg)
    agent.compile_update()
    if fitted:
        fit_encoder(agent, ring.sampler.draw(0, cfg.batch_size, cfg.horizon, cfg.seed))
    for update in progress(range(args.updates + 1), "fitted" if fitted else "as it begins", unit="updates"):
        if update % max(args.updates // 4, 1) == 0:
            yield {"name": "fitted" if fitted else "as it begins", "updates": update, **predictions(agent, steps)}
        agent.update(ring.sampler.draw(update, cfg.batch_size, cfg.horizon, cfg.seed))


@torch.no_grad()
def predictions(agent: TDMPC2, steps: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    model, rewards, latents = agent.model, {}, []
    for name, (images, action) in steps.items():
        z = model.encode(images.to(agent.device))
        rewards[name] = decode(model.reward(z, action.to(agent.device)), model.bins).flatten()
        latents.append(z)
    pairs = rewards["rewarded"][:, None] - rewards["unrewarded"]  # equal ones count as half
    order = (pairs > 0).float().mean() + (pairs == 0).float().mean() / 2
    means = {name: float(values.mean()) for name, values in rewards.items()}
    return {"order": float(order), **means, "variance": float(torch.cat(latents).var(0).mean())}


if __name__ == "__main__":
    main()
