"""Collect episodes into chunk files.

The files are planned first; only missing ones are collected, so that a stopped collection continues. A file (shard)
holds episodes of one task by one behaviour policy. It is a function of the configuration and its number: the seeds of
its environments and of its actor are drawn from (``seed``, number), and nothing passes from one file to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.collect_record import Collection, Record, drawn_seeds
from tdmpc2.data.reward_range import beyond_bins
from tdmpc2.data.store.parts import Part
from tdmpc2.data.unequal import Recorded, chunk_index, write_recorded
from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.loading import load_agent
from tdmpc2.nn.pixels import split_observation
from tdmpc2.play.mixture import BehaviourPolicy, load_policies, mixture_entries, policy_from_agent, split
from tdmpc2.play.rollout import Actor, Episode, Floats, Job, check_playable, most_on_cuda, play
from tdmpc2.support.files import check_free_disk, delete_leftovers, locked
from tdmpc2.tasks import TaskSpec
from tdmpc2.tracking.progress import Progress, open_console, print_line

_OVERHEAD = 4096  # bytes of a chunk file besides its arrays, at most


@dataclass(frozen=True)
class Shard:
    """One file to collect."""

    number: int
    task_id: int
    task: str
    policy: int  # position in the mixture
    behaviour: str  # in words
    episodes: int

    @property
    def name(self) -> str:
        return f"chunk_{self.number}.pt"


def list_shards(cfg: Config, policies: Sequence[BehaviourPolicy], first: int = 0) -> list[Shard]:
    """List all files of a collection, at most ``episodes_per_file`` episodes in each; numbers start at ``first``.

    The first file of every task and behaviour policy comes before the second of any, so that an unfinished set has all
    tasks.
    """
    counts = split(cfg.episodes_per_task, [policy.entry.share for policy in policies])
    size = cfg.episodes_per_file
    shards: list[Shard] = []
    for start in range(0, max(counts), size):
        for task_id in cfg.task_ids:
            for index, count in enumerate(counts):
                if episodes := min(count - start, size) if count > start else 0:
                    task, behaviour = cfg.task_specs[task_id].name, str(policies[index].entry)
                    shards.append(Shard(first + len(shards), task_id, task, index, behaviour, episodes))
    return shards


def num_envs(policy: BehaviourPolicy, episodes: int) -> int:
    """Choose how many environments play side by side in a file of so many episodes; batches are about equal.

    CPU: 4 when planning, so that activations stay in cache; 16 for a policy, which gains from more; 4 for random play,
    where building environments is half of the work (benchmarks/collect.py). Accelerator: see
    :func:`~tdmpc2.play.rollout.most_on_cuda`. Free memory does not count: a file must not depend on it.
    """
    most = 4
    if policy.agent is not None:
        cfg = policy.agent.cfg
        if policy.agent.device.type != "cpu":
            most = most_on_cuda(cfg.num_samples, cfg.mlp_dim)
        elif not policy.mpc:
            most = 16
    return -(-episodes // -(-episodes // most))


def collect(
    cfg: Config,
    agent: TDMPC2 | Sequence[BehaviourPolicy] | None,
    data_dir: Path,
    report: Callable[[Shard, np.ndarray], None] | None = None,
) -> list[Path]:
    """Collect ``episodes_per_task`` episodes of each task into chunk files of a directory, or continue doing so.

    ``collect.json`` in the directory records every collection's settings and numbers. The same settings continue an
    unfinished collection, whose files then are those of an undisturbed run, and leave a finished one as it is; other
    settings, such as another seed, add a collection. Existing files stay. Several processes can collect into one
    directory, each a collection of its own. Where the tasks' episode lengths differ (MT80), long episodes are cut to
    the shortest, as the published form of chunk files needs. A file with an episode that ended earlier, or terminated,
    has the other form (:mod:`tdmpc2.data.unequal`).

    Args:
        cfg: tasks, ``seed``, ``episodes_per_task``, ``episodes_per_file``; without an agent, ``mix``.
        agent: an agent, which acts with exploration noise; the behaviour policies of a mixture; None for those of
            ``cfg.mix``, or uniformly random actions.
        data_dir: directory of the chunk files.
        report: called with each file that was played and the returns of its episodes, [n].

    Returns:
        All files of the collection.

    Raises:
        ValueError: the disk is too small or refused, the directory holds another task set, the collection was begun on
            another kind of machine (see
            :meth:`~tdmpc2.data.collect_record.Collection.check_computing`), or another process is at work on it.
    """
    policies = _policies(cfg, agent)
    check_playable(cfg)
    _check_states(cfg)
    shards = list_shards(cfg, policies)
    sizes = [_largest_batch(policy, index, shards) for index, policy in enumerate(policies)]
    _compile(cfg, policies, shards)
    computing = _computing(policies, sizes)
    data_dir = Path(data_dir).expanduser()
    collection, record, new = _registered(cfg, policies, data_dir, shards, computing)
    shards = list_shards(cfg, policies, collection.first)
    collection_lock = data_dir / f"collect_{collection.first}.lock"
    running = f"{data_dir}: another process is collecting these episodes (collect.json, files from {shards[0].name} on)"
    with locked(collection_lock, running):
        missing = [shard for shard in shards if not _is_there(data_dir, cfg.task_specs, shard)]
        if missing and not new:
            collection.check_computing(computing, record.path)
            _check_disk(cfg, data_dir, missing)
        _say_what_comes(cfg, data_dir, shards, missing)
        for shard in missing:
            delete_leftovers(data_dir, shard.name)
        if missing:
            _play(cfg, policies, sizes, data_dir, missing, report)
        collection_lock.unlink(missing_ok=True)  # whoever waits for it finds that nothing is missing
    return [data_dir / shard.name for shard in shards]


def _policies(cfg: Config, agent: TDMPC2 | Sequence[BehaviourPolicy] | None) -> list[BehaviourPolicy]:
    """List the behaviour policies of a collection, those of ``cfg.mix`` loaded; each has to play its tasks."""
    if agent is None and cfg.mix is not None:
        keys = {key: getattr(cfg, key) for key in ("device", "precision", "compile", "num_threads", "seed")}
        agent = load_policies(
            mixture_entries(cfg.mix, None, cfg.mpc), lambda file, mpc: load_agent(file, mpc=mpc, **keys)
        )
    policies = [policy_from_agent(agent)] if agent is None or isinstance(agent, TDMPC2) else list(agent)
    for policy in policies:
        if policy.agent is not None and policy.agent.cfg.task_specs != cfg.task_specs:
            raise ValueError(f"{policy.entry} plays task={policy.agent.cfg.task}, not task={cfg.task}")
    return policies


def _registered(
    cfg: Config,
    policies: Sequence[BehaviourPolicy],
    data_dir: Path,
    shards: Sequence[Shard],
    computing: dict[str, object],
) -> tuple[Collection, Record, bool]:
    """Find the collection in the directory's record, or add it there; True if it is new."""
    settings = {
        "tasks": [cfg.task_specs[i].name for i in cfg.task_ids],
        "seed": cfg.seed,
        "episodes_per_task": cfg.episodes_per_task,
        "episodes_per_file": cfg.episodes_per_file,
        "sources": [policy.settings() for policy in policies],
    }
    busy = f"Another process has held {data_dir}/collect.lock for a minute: try again"
    with locked(data_dir / "collect.lock", busy, wait=60):
        record = Record.read(data_dir, cfg.task, cfg.task_specs)
        if (known := record.find(settings)) is not None:
            return known, record, False
        words = [f"{policy.entry.share:.3g} {policy.entry}" for policy in policies]
        collection = Collection(record.next_number(), len(shards), settings, computing, words)
        _check_disk(cfg, data_dir, shards)
        record.add(collection)
        return collection, record, True


def episode_returns(paths: Sequence[Path], cfg: Config) -> dict[str, np.ndarray]:
    """Read the returns [n] of all episodes in chunk files, by task."""
    returns_of: dict[str, list[np.ndarray]] = {cfg.task_specs[i].name: [] for i in cfg.task_ids}
    for path in paths:
        part = Part.of_chunk(path, Layout.of(cfg.task_specs))
        rewards = part.read(torch.arange(len(part.index)))["reward"]
        name = cfg.task_specs[int(part.index.task[0])].name
        returns_of[name].append(rewards[:, 1:].double().sum(1).numpy())
    return {name: np.concatenate(parts) for name, parts in returns_of.items() if parts}


def _play(
    cfg: Config,
    policies: Sequence[BehaviourPolicy],
    sizes: Sequence[int],
    data_dir: Path,
    shards: Sequence[Shard],
    report: Callable[[Shard, np.ndarray], None] | None,
) -> None:
    from tdmpc2.envs.vector import EnvPool  # loads the simulators

    length = Layout.of(cfg.task_specs).rows - 1
    total = sum(shard.episodes for shard in shards) * length
    warned: set[str] = set()
    form = cfg.obs_dim, cfg.action_dim, cfg.obs, cfg.env_workers
    with Progress(total, "Collecting", unit="steps") as bar, EnvPool(*form) as pool:
        for shard in shards:
            policy, size = policies[shard.policy], sizes[shard.policy]
            draws, seeds = drawn_seeds(cfg.seed, shard.number, shard.episodes)
            actor = policy.actor(cfg, draws)
            if policy.agent is not None and policy.agent.planner.fixed_size:
                actor = _padded(actor, size)
            jobs = [Job(shard.task_id, seed) for seed in seeds]
            episodes: list[Episode] = []
            for first in range(0, len(jobs), size):
                batch = jobs[first : first + size]
                try:
                    played = play(cfg, actor, batch, max_steps=length, on_step=bar.update, pool=pool)
                except EnvironmentFault as fault:
                    raise ValueError(
                        f"{fault}. The same command plays this episode again: another seed than {cfg.seed} plays others"
                    ) from fault
                episodes += played
                bar.shorten(len(played) * length - sum(len(episode.reward) - 1 for episode in played))
            write_recorded(
                data_dir / shard.name, [_recorded(episode, cfg) for episode in episodes], shard.task_id, length
            )
            reward = np.concatenate([episode.reward for episode in episodes])
            if line := "" if shard.task in warned else beyond_bins(cfg, reward, shard.task):
                print_line(open_console(None), line)
                warned.add(shard.task)
            if report:
                report(shard, np.array([e.episode_return for e in episodes]))


def _recorded(episode: Episode, cfg: Config) -> Recorded:
    obs, action, reward = (torch.from_numpy(part) for part in (episode.obs, episode.action, episode.reward))
    if cfg.observes_images:
        obs, _ = split_observation(obs, cfg.obs_dim, cfg.image_shape)
    return Recorded(obs, action, reward, episode.terminated)


def _check_states(cfg: Config) -> None:
    """Raise ``ValueError`` unless what is observed has the state, which is what is stored."""
    if cfg.observes_images and (not cfg.observes_state or cfg.task_specs[0].image):
        raise ValueError(
            f"obs={cfg.obs}: stored episodes hold states, and {cfg.task} is seen in images here, which are none: play "
            "it with evaluate, or learn from it online"
        )


def _padded(actor: Actor, size: int) -> Actor:
    """Let an actor always see ``size`` environments, the last one repeated: a compiled planner is for one size."""

    def act(obs: Floats, t0: np.ndarray, task_ids: np.ndarray) -> Floats:
        rows = np.minimum(np.arange(size), len(obs) - 1)
        return actor(obs[rows], t0[rows], task_ids[rows])[: len(obs)]

    return act


def _largest_batch(policy: BehaviourPolicy, index: int, shards: Sequence[Shard]) -> int:
    """Batch size of a behaviour policy: that of its largest file, so that all full batches have one size."""
    return num_envs(policy, max((shard.episodes for shard in shards if shard.policy == index), default=1))


def _compile(cfg: Config, policies: Sequence[BehaviourPolicy], shards: Sequence[Shard]) -> None:
    """Speed up the planners that will play enough steps, and keep the others plain.

    None is left to its use: a continued collection would then compile at another step than an undisturbed one.
    Files already on disk are counted too, so that a continued collection decides as before.
    """
    planners = {id(p.agent): p.agent for p in policies if p.agent is not None and p.mpc}
    lines: dict[str, None] = {}  # each once, in order
    for key, agent in planners.items():
        own = {index for index, p in enumerate(policies) if p.mpc and id(p.agent) == key}
        planned = [shard for shard in shards if shard.policy in own]
        steps = sum(shard.episodes * cfg.task_specs[shard.task_id].episode_length for shard in planned)
        lines[agent.compile_planner(steps)] = None
    for agent in {id(p.agent): p.agent for p in policies if p.agent is not None and not p.mpc}.values():
        if id(agent) not in planners:
            agent.planner.use_kernels(agent.cfg.compile)
    for line in filter(None, lines):
        print_line(open_console(None), line)


def _computing(policies: Sequence[BehaviourPolicy], sizes: Sequence[int]) -> dict[str, object]:
    """List the settings that change an agent's actions in the last bits; empty for random actions.

    They are device, threads, precision, planner and batch size.
    """
    agents = [(p.agent, size) for p, size in zip(policies, sizes, strict=True) if p.agent is not None]
    if not agents:
        return {}
    devices = sorted({agent.device.type for agent, _ in agents})
    return {
        "device": "+".join(devices),
        "num_threads": torch.get_num_threads() if "cpu" in devices else None,
        "precision": [agent.precision for agent, _ in agents],
        "planner": [agent.planner.kind for agent, _ in agents],
        "num_envs": [size for _, size in agents],
    }


def _is_there(data_dir: Path, specs: Sequence[TaskSpec], shard: Shard) -> bool:
    """Tell if a file has been collected.

    Raises:
        ValueError: a file of that name is damaged or not the one that was planned.
    """
    path = data_dir / shard.name
    if not path.exists():
        return False
    index = chunk_index(path, Layout.of(specs))
    episodes, task_id = len(index), int(index.task[0])
    if (episodes, task_id) != (shard.episodes, shard.task_id):
        raise ValueError(
            f"{path} holds {episodes} episodes of task {task_id}, but collect.json plans {shard.episodes} of task "
            f"{shard.task_id} under that name: move it away to have them played"
        )
    return True


def _bytes(cfg: Config, shards: Sequence[Shard]) -> int:
    layout = Layout.of(cfg.task_specs)
    row = 4 * (layout.obs_dim + layout.action_dim + 2)  # observation, action, reward, task
    return sum(shard.episodes * layout.rows * row + _OVERHEAD for shard in shards)


def _check_disk(cfg: Config, data_dir: Path, missing: Sequence[Shard]) -> None:
    check_free_disk(data_dir, _bytes(cfg, missing), "set episodes_per_task lower, or name another data_dir")


def _say_what_comes(cfg: Config, data_dir: Path, shards: Sequence[Shard], missing: Sequence[Shard]) -> None:
    files = f"{shards[0].name} to {shards[-1].name}" if len(shards) > 1 else shards[0].name
    line = f"{data_dir}: {sum(shard.episodes for shard in shards):,} episodes in {len(shards)} files, {files}"
    if not missing:
        line += ": complete; change seed to add other episodes"
    else:
        there = "" if len(missing) == len(shards) else f", {len(shards) - len(missing)} of them there already"
        line += f"{there}; {_bytes(cfg, missing) / 1e6:,.1f} MB to collect"
    print_line(open_console(None), line)
