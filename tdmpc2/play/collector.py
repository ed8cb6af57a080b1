"""Playing episodes into chunk files: a plan of files, of which those that are missing are played.

A file (shard) holds episodes of one task by one player. It is a function of the configuration and its number: the seeds
of its environments and of its player are drawn from (``seed``, number), and nothing passes from one file to the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.chunks import Layout, read_chunk, write_chunk
from tdmpc2.data.collect_record import Collection, Record
from tdmpc2.loading import load_agent
from tdmpc2.play.mixture import Player, load_players, player_of, sources_of, split
from tdmpc2.play.rollout import Actor, Episode, Floats, Job, check_playable, play
from tdmpc2.support.files import locked
from tdmpc2.tracking.progress import Progress, open_console, print_line

_OVERHEAD = 4096  # bytes of a chunk file besides its arrays, at most
_MAX_COMPILED = 4  # torch.compile stops compiling after 8 variants of a function, without a word


@dataclass(frozen=True)
class Shard:
    """One file to play."""

    number: int
    task_id: int
    task: str
    player: int  # position in the mixture
    source: str  # in words
    episodes: int

    @property
    def name(self) -> str:
        return f"chunk_{self.number}.pt"


def plan(cfg: Config, players: Sequence[Player], first: int = 0) -> list[Shard]:
    """All files of a collection, at most ``episodes_per_file`` episodes in each; numbers start at ``first``.

    The first file of every task and player comes before the second of any, so that an unfinished set has all tasks.
    """
    counts = split(cfg.episodes_per_task, [player.source.share for player in players])
    size = cfg.episodes_per_file
    shards: list[Shard] = []
    for start in range(0, max(counts), size):
        for task_id in cfg.task_ids:
            for index, count in enumerate(counts):
                if episodes := min(count - start, size) if count > start else 0:
                    task, source = cfg.task_specs[task_id].name, str(players[index].source)
                    shards.append(Shard(first + len(shards), task_id, task, index, source, episodes))
    return shards


def num_envs(player: Player, episodes: int) -> int:
    """How many environments play side by side in a file of so many episodes; batches are about equal.

    On a processor planning for more than four does not fit the caches, a policy gains from more, and random play, where
    building environments is half of the work, from using few of them again (benchmarks/collect.py). On an accelerator
    it is what 2 GiB hold of the activations of planning. Free memory does not count: a file must not depend on it.
    """
    most = 4
    if player.agent is not None:
        cfg = player.agent.cfg
        if player.agent.device.type != "cpu":
            most = min(max(2**31 // (cfg.num_samples * cfg.mlp_dim * 4 * 16), 1), 64)
        elif not cfg.mpc:
            most = 16
    return -(-episodes // -(-episodes // most))


def collect(
    cfg: Config,
    agent: TDMPC2 | Sequence[Player] | None,
    data_dir: Path,
    report: Callable[[Shard, np.ndarray], None] | None = None,
) -> list[Path]:
    """Play ``episodes_per_task`` episodes of each task into the chunk files of a directory, or continue doing so.

    ``collect.json`` in the directory records every collection's settings and numbers. The same settings continue an
    unfinished collection, whose files then are those of an undisturbed run, and leave a finished one as it is; other
    settings, such as another seed, add a collection. Existing files stay. Several processes can collect into one
    directory, each a collection of its own. Where episode lengths differ (MT80), long episodes are cut to the shortest,
    as the chunk format needs.

    Args:
        cfg: tasks, ``seed``, ``episodes_per_task``, ``episodes_per_file``; without an agent, ``mix``.
        agent: an agent, which acts with exploration noise; the players of a mixture; None for those of ``cfg.mix``, or
            uniformly random actions.
        data_dir: directory of the chunk files.
        report: called with each file that was played and the returns of its episodes, [n].

    Returns:
        All files of the collection.

    Raises:
        ValueError: the disk is too small or refused, an episode ended early, which the chunk format cannot hold, the
            directory holds another task set, the collection was begun on another kind of machine (see
            :meth:`~tdmpc2.data.collect_record.Collection.check_computing`), or another process is at work on it.
    """
    if agent is None and cfg.mix is not None:
        keys = {key: getattr(cfg, key) for key in ("device", "precision", "compile", "num_threads", "seed")}
        agent = load_players(sources_of(cfg.mix, None, cfg.mpc), lambda path, mpc: load_agent(path, mpc=mpc, **keys))
    players = [player_of(agent)] if agent is None or isinstance(agent, TDMPC2) else list(agent)
    for player in players:
        if player.agent is not None and player.agent.cfg.task_specs != cfg.task_specs:
            raise ValueError(f"{player.source} plays task={player.agent.cfg.task}, not task={cfg.task}")
    check_playable(cfg)
    shards = plan(cfg, players)
    sizes = [_largest_batch(player, index, shards) for index, player in enumerate(players)]
    _compile(cfg, players, shards)
    computing = _computing(players, sizes)
    words = [f"{player.source.share:.3g} {player.source}" for player in players]
    settings = {
        "tasks": [cfg.task_specs[i].name for i in cfg.task_ids],
        "seed": cfg.seed,
        "episodes_per_task": cfg.episodes_per_task,
        "episodes_per_file": cfg.episodes_per_file,
        "sources": [player.settings() for player in players],
    }
    data_dir = Path(data_dir).expanduser()
    busy = f"Another process has held {data_dir}/collect.lock for a minute: try again"
    with locked(data_dir / "collect.lock", busy, wait=60):
        record = Record.read(data_dir, cfg)
        collection = record.find(settings)
        new = collection is None
        if collection is None:
            collection = Collection(record.next_number(), len(shards), settings, computing, words)
            _check_disk(cfg, data_dir, shards)
            record.add(collection)
    shards = plan(cfg, players, collection.first)
    own_lock = data_dir / f"collect_{collection.first}.lock"
    running = f"{data_dir}: another process is collecting these episodes (collect.json, files from {shards[0].name} on)"
    with locked(own_lock, running):
        missing = [shard for shard in shards if not _is_there(data_dir, shard)]
        if missing and not new:
            collection.check_computing(computing, record.path)
            _check_disk(cfg, data_dir, missing)
        _say_what_comes(cfg, data_dir, shards, missing)
        for shard in missing:
            for left_by_a_kill in data_dir.glob(f".{shard.name}.*.tmp"):
                left_by_a_kill.unlink()
        if missing:
            _play(cfg, players, sizes, data_dir, missing, report)
        own_lock.unlink(missing_ok=True)  # whoever waits for it finds that nothing is missing
    return [data_dir / shard.name for shard in shards]


def episode_returns(paths: Sequence[Path], cfg: Config) -> dict[str, np.ndarray]:
    """Returns [n] of all episodes in chunk files, by task."""
    found: dict[str, list[np.ndarray]] = {cfg.task_specs[i].name: [] for i in cfg.task_ids}
    for path in paths:
        chunk = read_chunk(path)
        returns = chunk["reward"][:, 1:].double().sum(1).numpy()
        found[cfg.task_specs[int(chunk["task"][0, 0])].name].append(returns)
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


def _play(
    cfg: Config,
    players: Sequence[Player],
    sizes: Sequence[int],
    data_dir: Path,
    shards: Sequence[Shard],
    report: Callable[[Shard, np.ndarray], None] | None,
) -> None:
    from tdmpc2.envs.vector import EnvPool  # loads the simulators

    length = Layout.of(cfg.task_specs).rows - 1
    total = sum(shard.episodes for shard in shards) * length
    with Progress(total, "Collecting", unit="steps") as bar, EnvPool(cfg.obs_dim, cfg.action_dim) as pool:
        for shard in shards:
            player, size = players[shard.player], sizes[shard.player]
            draws, *seeds = np.random.SeedSequence((cfg.seed, shard.number)).generate_state(shard.episodes + 1).tolist()
            actor = player.actor(cfg, draws)
            if player.agent is not None and player.agent.planner.fixed_size:
                actor = _padded(actor, size)
            jobs = [Job(shard.task_id, seed) for seed in seeds]
            episodes: list[Episode] = []
            for first in range(0, len(jobs), size):
                batch = jobs[first : first + size]
                played = play(cfg, actor, batch, max_steps=length, on_step=bar.update, pool=pool)
                if short := next((e for e in played if len(e.reward) != length + 1), None):
                    raise ValueError(
                        f"An episode of {shard.task} ended after {len(short.reward) - 1} of {length} steps "
                        f"(seed {short.job.seed}); offline data needs episodes of equal length"
                    )
                episodes += played
            obs, action, reward = (
                torch.from_numpy(np.stack([getattr(episode, column) for episode in episodes]))
                for column in ("obs", "action", "reward")
            )
            task = torch.full((len(episodes),), shard.task_id)
            write_chunk(data_dir / shard.name, obs, action, reward, task)
            if report:
                report(shard, np.array([e.episode_return for e in episodes]))


def _padded(actor: Actor, size: int) -> Actor:
    """An actor that always sees ``size`` environments, the last one repeated: a compiled planner is for one size."""

    def act(obs: Floats, t0: np.ndarray, task_ids: np.ndarray) -> Floats:
        rows = np.minimum(np.arange(size), len(obs) - 1)
        return actor(obs[rows], t0[rows], task_ids[rows])[: len(obs)]

    return act


def _largest_batch(player: Player, index: int, shards: Sequence[Shard]) -> int:
    """The size of all full batches of a player, which that of its largest file is."""
    return num_envs(player, max((shard.episodes for shard in shards if shard.player == index), default=1))


def _compile(cfg: Config, players: Sequence[Player], shards: Sequence[Shard]) -> None:
    """Compile the planners for which the collection is long enough; what is there already does not count."""
    planners = {id(p.agent): p.agent for p in players if p.agent is not None and p.agent.cfg.mpc}
    lines: dict[str, None] = {}  # each once, in order
    if len(planners) > _MAX_COMPILED:
        lines[f"Planning without compilation, which is for at most {_MAX_COMPILED} checkpoints in one mix"] = None
        for agent in planners.values():  # left to its use, one would be compiled in the middle of a collection
            agent.planner.speed_up("false", 0)
    else:
        for key, agent in planners.items():
            own = [shard for shard in shards if id(players[shard.player].agent) == key]
            steps = sum(shard.episodes * cfg.task_specs[shard.task_id].episode_length for shard in own)
            lines[agent.compile_planner(steps)] = None
    for line in filter(None, lines):
        print_line(open_console(None), line)


def _computing(players: Sequence[Player], sizes: Sequence[int]) -> dict[str, object]:
    """What decides the last bits of agents' actions; nothing for random ones."""
    agents = [(p.agent, size) for p, size in zip(players, sizes, strict=True) if p.agent is not None]
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


def _is_there(data_dir: Path, shard: Shard) -> bool:
    """Whether a file has been played.

    Raises:
        ValueError: a file of that name is damaged or not the one that was planned.
    """
    path = data_dir / shard.name
    if not path.exists():
        return False
    chunk = read_chunk(path)
    episodes, task_id = len(chunk["task"]), int(chunk["task"][0, 0])
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
    needed, free = _bytes(cfg, missing), shutil.disk_usage(data_dir).free
    if needed > free:
        raise ValueError(
            f"{len(missing)} files with {needed / 1e9:.3f} GB are to be collected, but {data_dir} has "
            f"{free / 1e9:.3f} GB free: make room, set episodes_per_task lower, or name another data_dir"
        )


def _say_what_comes(cfg: Config, data_dir: Path, shards: Sequence[Shard], missing: Sequence[Shard]) -> None:
    files = f"{shards[0].name} to {shards[-1].name}" if len(shards) > 1 else shards[0].name
    line = f"{data_dir}: {sum(shard.episodes for shard in shards):,} episodes in {len(shards)} files, {files}"
    if not missing:
        line += ": complete; change seed to add other episodes"
    else:
        there = "" if len(missing) == len(shards) else f", {len(shards) - len(missing)} of them there already"
        line += f"{there}; {_bytes(cfg, missing) / 1e6:,.1f} MB to collect"
    print_line(open_console(None), line)
