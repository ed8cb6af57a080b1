"""The environments of a run that learns online, and the agent's play in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distributed import ProcessGroup
from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.stepping import EachAlone, Played, Step
from tdmpc2.envs.workers import EachInWorkers, WorkerLost, each_of
from tdmpc2.play.actors import pink_actions, prior_actions, uniform_actions
from tdmpc2.play.environment_failed import EnvironmentFailed, TerminationRefused
from tdmpc2.play.explorer_state import Running, check_explorer, loaded_episode, saved_episode, saved_running
from tdmpc2.play.rollout import Episode, Floats
from tdmpc2.player import Asked, NotFinite
from tdmpc2.support.draws import numbered_generator

_RANDOM_ACTIONS, _POLICY_STEPS = 1, 2  # streams of numbered_generator
_PLAYER = 0x5EED  # what the seed of the player's draws is told apart by from those of environments


class Explorer:
    """E environments, played step by step for what they teach.

    Every episode has a seed of its own, which follows from the run's, the environment and the number of the episode. So
    a running episode is saved as its seed and actions: when the run is continued, it is played again.

    With ``share_body`` every step is scored for all tasks of the run that are one body with the one that is played.

    Several processes play their own part of the environments each, and tell one another which episodes have ended.
    Random numbers are drawn for all environments everywhere, so that the split changes nothing but rounding.

    Args:
        cfg: names the tasks (``cfg.envs``), and says how to plan while collecting.
        agent: acts with exploration noise, through a player that is the explorer's alone.
        group: the processes that play together.

    Attributes:
        task_ids: of each environment, [E].
        own: the rows of this process's environments; all E without others.
        player: plans, for these environments alone.
        notes: lines about a continued run.

    Raises:
        ValueError: a task has no environment here, or there are fewer environments than processes.
    """

    def __init__(self, cfg: Config, agent: TDMPC2, group: ProcessGroup | None = None) -> None:
        self._cfg, self._model, self._group = cfg, agent.model, group or ProcessGroup()
        self.task_ids = np.array(cfg.envs)
        count, processes = len(self.task_ids), self._group.world_size
        if count < processes:
            raise ValueError(
                f"num_envs={cfg.num_envs}: {count} environments in all cannot be split over {processes} processes: set "
                f"num_envs={-(-processes * cfg.num_envs // count)}, or start fewer processes"
            )
        self.own = self._group.part(count)
        self._rows = range(count)[self.own]
        self._stored_for = [cfg.stored_for[task_id] for task_id in cfg.envs]
        self.notes: list[str] = []
        samples = cfg.collect_num_samples or cfg.num_samples
        budget = {"num_samples": samples, "iterations": cfg.collect_iterations or cfg.iterations}
        seed = int(np.random.SeedSequence((cfg.seed, _PLAYER)).generate_state(1)[0])
        among = (self.own, count) if processes > 1 else None
        self.player = agent.player(len(self._rows), seed, None, among, **budget)
        self._planned_for = cfg.steps // len(self.task_ids)
        self._begun = [0] * len(self.task_ids)  # episodes of each environment
        self._running: list[Running | None] = [None] * len(self.task_ids)  # None: an episode is to begin
        self._ended: list[Episode] = []
        self._before = self.player.state()
        self._envs = self._build()

    def compile_planner(self, wanted: str | None = None, num_plans: int | None = None) -> str:
        """Plan in the fastest way, if it is worth it for the run; returns one line about it, or nothing.

        Args:
            wanted: None: the run's ``compile``.
            num_plans: None: those of the run.

        Raises:
            ValueError: ``collect_precision`` asks for what plans are not made with here.
        """
        precision = self._cfg.collect_precision
        line = self.player.compile_planner(
            self._cfg.compile if wanted is None else wanted,
            self._planned_for if num_plans is None else num_plans,
            torch.bfloat16 if precision == "bf16" else None,
        )
        if precision != "fp32" and self.player.plans_by != "kernels":
            raise ValueError(
                f"collect_precision={precision} is for the CPU kernels, and plans are not made by them here "
                f"(device={self._cfg.device}, compile={self._cfg.compile}): leave it out. {line}".rstrip()
            )
        return line

    # -- one turn -----------------------------------------------------------------------------------------------------

    def take_ended(self) -> list[Episode]:
        """Hand over the episodes that have ended since the last call, each for every task that it is stored for.

        They are those of all processes, in the order of their environments.
        """
        ended, self._ended = self._ended, []
        return ended

    def begin(self) -> None:
        """Reset every environment whose episode is over.

        Raises:
            EnvironmentFailed: naming task, environment and seed.
        """
        with self._failing_together():
            for i in self._rows:
                if self._running[i] is None:
                    seed = self._seed(i, self._begun[i])
                    self._begun[i] += 1  # before a reset that fails: the next one is of another episode
                    self._running[i] = self._reset(i, seed)

    def act(self, step: int, *, random: bool, prior: bool = False) -> Floats:
        """Choose the actions of this process's environments, [E, A].

        Args:
            step: number of the turn, which random actions are a function of.
            random: as ``seed_actions`` has it; otherwise planned, with exploration noise, or in the share
                ``collect_policy`` of all turns samples of the policy prior.
            prior: random actions are samples of the policy prior instead.

        Raises:
            ValueError: no plan or action of an environment is finite; the message names task, seed and step.
        """
        self._before = self.player.state()
        generator = numbered_generator(self._cfg.seed, step, _RANDOM_ACTIONS)
        if random and not prior and self._cfg.seed_actions == "pink":
            return pink_actions(self._cfg, self.task_ids, step)[self.own]
        if random and not prior:
            return uniform_actions(self._cfg, self.task_ids, generator)[self.own]
        obs, starts, task = self._seen()
        if random or self._by_policy(step):
            return self._finite(prior_actions(self._model, obs, self.task_ids, generator, self.own))
        starts |= self._by_policy(step - len(self.task_ids))  # the plan before is of a step earlier
        try:
            return self.player.act(obs, starts, task=task, eval_mode=False)
        except NotFinite as error:
            raise self._not_finite(error.env, error.message) from error

    def _finite(self, actions: Floats) -> Floats:
        """Require actions [E, A] to be finite."""
        finite = np.isfinite(actions).all(-1)
        if not finite.all():
            raise self._not_finite(
                int(np.argmin(finite)), "the policy's action is not finite, so the weights are damaged"
            )
        return actions

    def _not_finite(self, row: int, message: str) -> ValueError:
        running, name = self._episode(self._rows[row]), self._cfg.task_names[self.task_ids[self._rows[row]]]
        return ValueError(f"{name} (seed {running.seed}, step {len(running.action) + 1}): {message}")

    def _by_policy(self, step: int) -> bool:
        """Tell whether the policy acts alone in a turn that is not random."""
        share = self._cfg.collect_policy
        return share > 0 and step > 0 and numbered_generator(self._cfg.seed, step, _POLICY_STEPS).random() < share

    def asked(self) -> Asked:
        """Begin to act as :meth:`act` does, and ask for a plan that something else makes for :attr:`player`."""
        self._before = self.player.state()
        return self.player.asked(*self._seen())

    def _seen(self) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64] | None]:
        """Collect observations, where episodes start, and tasks, of this process's environments."""
        obs = np.stack([self._episode(i).obs[-1] for i in self._rows])
        starts = np.array([not self._episode(i).action for i in self._rows])
        return obs, starts, self.task_ids[self.own] if self._cfg.multitask else None

    def begin_step(self, actions: Floats) -> None:
        """Begin the step that :meth:`step` or :meth:`outcomes` then takes with the same actions."""
        self._envs.begin(dict(zip(self._rows, actions, strict=True)))

    def step(self, actions: Floats) -> list[Episode]:
        """Take a step in every environment; returns the episodes that end with it, each for the task it was played for.

        Args:
            actions: of this process's environments, [E, A].

        Returns:
            Episodes of all processes, in the order of their environments.

        Raises:
            EnvironmentFailed: naming task, environment, seed and step, in all processes. The steps of this turn then
                count as not taken, and a new episode is to begin in that environment.
        """
        return self.record(actions, self.outcomes(actions))

    def outcomes(self, actions: Floats) -> list[Step]:
        """Take a step in every environment, which :meth:`record` then notes.

        Raises:
            EnvironmentFailed: as :meth:`step`.
        """
        outcomes = []
        try:
            with self._failing_together():
                found = self._stepped(dict(zip(self._rows, actions, strict=True)))
                for i in self._rows:
                    try:
                        outcomes.append(self._checked(i, found[i]))
                    except EnvironmentFailed:
                        self._running[i] = None
                        raise
        except EnvironmentFailed:
            self.undo()
            raise
        return outcomes

    def undo(self) -> None:
        """Forget that actions were chosen for a step that cannot be noted."""
        self.player.load_state(self._before)

    def record(self, actions: Floats, outcomes: Sequence[Step]) -> list[Episode]:
        """Note a step of every environment; returns episodes as :meth:`step`."""
        ended = [
            episodes
            for i, action, outcome in zip(self._rows, actions, outcomes, strict=True)
            if (episodes := self._record(i, action, outcome))
        ]
        everywhere = [episodes for those in self._group.collect(ended) for episodes in those]
        self._ended += [episode for episodes in everywhere for episode in episodes]
        return [episodes[0] for episodes in everywhere]

    def _stepped(self, actions: Mapping[int, Floats]) -> dict[int, Step | str]:
        try:
            return self._envs.step(actions)
        except WorkerLost as error:  # new episodes then begin: it may have died of one of these
            for i in self._rows:
                self._running[i] = None
            raise EnvironmentFailed(str(error)) from error

    def _checked(self, i: int, outcome: Step | str) -> Step:
        """Raise :class:`EnvironmentFailed` for a fault, or an end that cannot be learned from."""
        running = self._episode(i)
        if isinstance(outcome, str):
            raise EnvironmentFailed(f"{self._number(i)}: {outcome}")
        if outcome.terminated and not self._cfg.episodic:
            task = self._cfg.task_specs[self.task_ids[i]].name
            raise TerminationRefused(
                f"{task} (seed {running.seed}, step {len(running.action) + 1}): the episode terminated, which "
                "episodic=false does not learn from: set episodic=true (and exp_name, for a run of its own), or wrap "
                "the environment so that it goes on until its time limit"
            )
        return outcome

    def _record(self, i: int, action: Floats, outcome: Step) -> list[Episode]:
        """Note a step; returns the episode that ends with it for each task that it is stored for, if one does."""
        running = self._episode(i)
        running.note(action, outcome)
        if not outcome.ends:
            return []
        self._running[i] = None
        return running.episodes(self._stored_for[i], outcome)

    def _episode(self, i: int) -> Running:
        running = self._running[i]
        assert running is not None, "begin() comes before a turn"
        return running

    # -- environments -------------------------------------------------------------------------------------------------

    def _build(self) -> EachAlone | EachInWorkers:
        cfg, names = self._cfg, self._cfg.task_names
        played = []
        for i in self._rows:
            task, *others = (names[task_id] for task_id in self._stored_for[i])
            played.append(Played(i, task, self._seed(i, 0), tuple(others)))
        return each_of(played, cfg.env_workers, cfg.obs_dim, cfg.action_dim, cfg.obs)

    def _seed(self, i: int, episode: int) -> int:
        return int(np.random.SeedSequence((self._cfg.seed, i, episode)).generate_state(1)[0] >> 1)

    def _reset(self, i: int, seed: int) -> Running:
        try:
            return Running(seed, [self._envs.reset(i, seed)])
        except (EnvironmentFault, WorkerLost) as error:
            raise EnvironmentFailed(f"{self._number(i)}: {error}") from error

    def _number(self, i: int) -> str:
        """Say which of the environments it is, for faults, which name task, seed and step."""
        return f"environment {i + 1} of {len(self.task_ids)}"

    @contextlib.contextmanager
    def _failing_together(self) -> Iterator[None]:
        """Raise in all processes what fails in one, so that none goes on alone."""
        failure = None
        try:
            yield
        except EnvironmentFailed as error:
            failure = type(error), str(error)
        for kind, message in filter(None, self._group.collect(failure)):
            raise kind(message)

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    # -- saved with the run -------------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """Collect what the next turn depends on: the running episodes and the player's state, of all processes."""
        own = [(r, self._begun[i]) for i, r in zip(self._rows, self._running[self.own], strict=True)]
        everywhere = [pair for pairs in self._group.collect(own) for pair in pairs]
        return {
            "begun": [begun for _, begun in everywhere],
            "running": [r if r is None else saved_running(r, self._cfg.action_dim) for r, _ in everywhere],
            "ended": [saved_episode(episode) for episode in self._ended],
            "player": self._player_state(),
            "planned_for": self._planned_for,
        }

    def _player_state(self) -> dict[str, Any]:
        """Join the plans of all processes; their random numbers stand alike."""
        states = self._group.collect({name: value.cpu() for name, value in self.player.state().items()})
        joined = {name: torch.cat([state[name] for state in states]) for name in states[0] if name != "generator"}
        return {"generator": states[0]["generator"], **joined}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`, playing the running episodes again.

        An environment that does not repeat an episode, or fails in it, begins a new one, and :attr:`notes` names it.

        Raises:
            ValueError: an entry is missing or does not fit; the message names it.
        """
        state = check_explorer(state, self._cfg, len(self.task_ids))
        self._begun = list(state["begun"])
        self._ended = [loaded_episode(episode) for episode in state["ended"]]
        self._planned_for = state["planned_for"]  # whether to compile must not depend on how often a run was continued
        player = state["player"]
        self.player.load_state({name: x if name == "generator" else x[self.own] for name, x in player.items()})
        notes = []
        for i in self._rows:
            saved = state["running"][i]
            if saved is not None and not self._play_again(i, saved):
                self._running[i] = None
                task = self._cfg.task_specs[self.task_ids[i]].name
                notes.append(
                    f"{task} (environment {i + 1}) does not repeat its episodes, so its running one is dropped and the "
                    "run is not bit for bit what it would have been"
                )
        self.notes += [note for those in self._group.collect(notes) for note in those]

    def _play_again(self, i: int, saved: Mapping[str, Any]) -> bool:
        """Bring an environment to where it was in an episode; false if that leads somewhere else, or nowhere.

        Raises:
            ValueError: the process that plays it ended. What was saved stays, and may be continued by the next start.
        """
        try:
            return self._repeats(i, saved)
        except EnvironmentFailed as error:
            if isinstance(error.__cause__, WorkerLost):
                raise ValueError(
                    f"{error}. Nothing of the run is changed: the same command continues it, and with env_workers=0 if "
                    "this comes again"
                ) from error
            return False

    def _repeats(self, i: int, saved: Mapping[str, Any]) -> bool:
        obs, reward = saved["obs"].numpy(), saved["reward"].tolist()
        running = self._running[i] = self._reset(i, saved["seed"])
        if not np.array_equal(running.obs[0], obs[0]):
            return False
        for t, action in enumerate(saved["action"].numpy()):
            outcome = self._checked(i, self._stepped({i: action})[i])
            if outcome.ends or outcome.rewards[0] != reward[t] or not np.array_equal(outcome.obs, obs[t + 1]):
                return False
            self._record(i, action, outcome)
        return True
