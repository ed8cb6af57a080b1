"""Choose the fastest way this machine has to compute :func:`tdmpc2.planner.plan`."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tdmpc2 import planner
from tdmpc2.acceleration import layers
from tdmpc2.acceleration.compiled_update import compiled_or_plain
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.cuda_graph import GraphedPlan
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.support.runtime import can_compile, too_many_threads

#: Plans that are worth compiling, which takes a minute per process.
WORTH_COMPILING = 1000
_log = logging.getLogger("tdmpc2")


def compiled_functions(model: WorldModel) -> dict[str, Any]:
    """Compile what replaces the planner's functions; each number of environments gets its own graph.

    Args:
        model: what they will plan with; it gets layers that compile well.

    Returns:
        ``iteration_fn`` and ``rollout_fn`` of :func:`tdmpc2.planner.plan`.
    """
    layers.prepare_for_compiler(model)
    return {
        "iteration_fn": compiled_or_plain(planner.iteration, "planning", dynamic=False),
        "rollout_fn": compiled_or_plain(planner.policy_rollout, "planning", dynamic=False),
    }


class FastPlanner:
    """Plans with one model: plainly, until :meth:`speed_up`, or as :meth:`speed_up_with_use` has it.

    Attributes:
        kind: ``plain``; ``kernels``, those of :mod:`tdmpc2.acceleration.cpu`; or ``compiled`` by torch, on CUDA as
            one graph.
        functions: replacements of the planner's own functions, by the arguments of :func:`tdmpc2.planner.plan`.
    """

    def __init__(self, model: WorldModel) -> None:
        self.kind = "plain"
        self.functions: dict[str, Any] = {}
        self._model = model
        self._products: torch.dtype | None = None  # of float32 weights, with the kernels; None: float32
        self._networks: PackedNetworks | None = None
        self._plan: Callable[..., planner.Plan] = planner.plan
        self._undecided = ""  # what was wanted of a choice that the first plan makes
        self._quiet = False
        self._plans: Counter[int] | None = None  # by number of environments, while these decide about compiling
        self._policy_plain = False  # there are no kernels for a policy alone
        self._choosing = threading.RLock()  # players of one agent may plan in threads of their own

    @property
    def fixed_size(self) -> bool:
        """True if another number of environments means recompiling."""
        return self.kind == "compiled"

    def speed_up(self, wanted: str, num_plans: int, products: torch.dtype | None = None) -> str:
        """Choose the fastest way for a known number of plans.

        Args:
            wanted: ``auto`` (the CPU kernels; where there are none, compiling if so many plans are worth it), ``true``
                or ``false``.
            num_plans: how often it will plan.
            products: number format of the matrix products of float32 weights where the CPU kernels plan; None: float32.

        Returns:
            One line for the user, or nothing.
        """
        self._undecided, self._plans, self._products = "", None, products
        if wanted == "false":
            self._plan_plainly()
            return ""
        if self.kind == "kernels":
            self._pack_or_leave()
        if self.kind != "plain":
            return ""
        reason = self._use_kernels()
        if self.kind == "kernels" or (wanted == "auto" and num_plans < WORTH_COMPILING):
            return ""
        return reason + self._compile()

    def use_kernels(self, wanted: str) -> str:
        """Take the CPU kernels for a policy if there are any, unless ``wanted`` is ``false``; they encode states.

        Returns:
            Why there are none, or nothing.
        """
        reason = ""
        if wanted == "false":
            self._plan_plainly()
        elif self.kind == "plain" and self._model.cfg.obs == "state":
            reason = self._use_kernels()
            if self.kind == "kernels":
                self._undecided, self._plans = "", None
        return reason

    def speed_up_with_use(self, wanted: str, *, quiet: bool = False) -> None:
        """Let use decide: the number of plans is not known.

        The first plan takes the CPU kernels where there are any. Where there are none and ``wanted`` is ``auto``, the
        first :data:`WORTH_COMPILING` plans for one number of environments are plain, and then that number is compiled
        for: at worst twice the time is spent of what would have been best. They are counted and not timed, so that
        every run does the same. What is done is logged once, unless it is to be ``quiet``.
        """
        self._undecided, self._plans = "" if wanted == "false" else wanted, None
        self._quiet = quiet

    def for_model(self, model: WorldModel) -> FastPlanner:
        """Make a planner of another model that will plan as this one does or will, with what use has yet to decide.

        Args:
            model: it may be this planner's own with other settings.

        Returns:
            A planner that chooses in its first plan; it takes no memory until then.
        """
        undecided = self._undecided  # first: once it is empty, the choice of another thread is complete
        chosen = {"plain": "false", "kernels": "auto", "compiled": "true"}[self.kind]
        other = FastPlanner(model)
        other.speed_up_with_use("auto" if self._plans is not None else undecided or chosen, quiet=self._quiet)
        return other

    def encode(self, obs: Tensor, task: TaskContext, shift: Tensor | None = None) -> Tensor:
        """Encode what is to be planned for, as :meth:`tdmpc2.nn.world_model.WorldModel.encode`."""
        self._prepare()
        if self._networks is not None and self._networks.encodes:
            return self._networks.encode(obs, task)
        return self._model.encode(obs, task, shift)

    def policy(self, obs: Tensor, task: TaskContext, eps: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Choose actions by the policy prior alone: with the kernels where plans have them, and otherwise plainly.

        Args:
            obs: of ``cfg.obs_shape``, [E, ...].
            task: of each environment.
            eps: standard-normal draw [E, A]; None: the policy's mean.
            shift: of images, [E, 2].

        Returns:
            Actions [E, A].
        """
        if self._undecided and not self._policy_plain:
            with self._choosing:
                self._decide_for_policy()
        if self._networks is not None and self._networks.encodes:
            self._pack_if_outdated()
        if self._networks is not None and self._networks.encodes:
            return self._networks.policy(obs, task, eps)
        z = self._model.encode(obs, task, shift)
        return self._model.policy_mean(z, task) if eps is None else self._model.pi(z, task, eps)[0]

    def __call__(self, z: Tensor, *args: Any, **kwargs: Any) -> planner.Plan:
        """Plan as :func:`tdmpc2.planner.plan`, without its first argument."""
        self._prepare()
        plan = self._plan if self._plans is None else self._by_use(self._plans, len(z))
        return plan(self._model, z, *args, **kwargs)

    def _prepare(self) -> None:
        """Make the choice that the first plan makes, and pack weights that have changed since."""
        if self._undecided:
            with self._choosing:
                if self._undecided:  # and no other thread has chosen meanwhile
                    self._decide()
        self._pack_if_outdated()

    def _pack_if_outdated(self) -> None:
        if self._networks is not None and self._networks.outdated():
            with self._choosing:
                if self._networks is not None and self._networks.outdated():
                    self._pack_or_leave()

    def __getstate__(self) -> dict[str, Any]:
        wanted = "auto" if self._plans is not None else self._undecided
        # Compiled code cannot be copied.
        return {
            "model": self._model, "kind": self.kind, "undecided": wanted, "quiet": self._quiet,
            "products": self._products,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]
        if state["undecided"]:
            self.speed_up_with_use(state["undecided"], quiet=state["quiet"])
        elif state["kind"] != "plain":  # kernels there may not be where it comes to: then it plans plainly
            self.speed_up("auto" if state["kind"] == "kernels" else "true", 0, state["products"])

    # -- with use -----------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Make the choice that the first plan makes, and say so."""
        try:
            self._choose(self._undecided)
        finally:
            self._undecided = ""  # last: until then other threads wait

    def _decide_for_policy(self) -> None:
        """Take the kernels for a policy alone, or say once why there are none; what plans will do is decided later."""
        if not self._undecided or self._policy_plain:  # another thread has chosen meanwhile
            return
        reason = self.use_kernels(self._undecided)
        self._policy_plain = self.kind != "kernels"
        if reason:
            self._say(logging.WARNING, f"{reason}The policy acts plainly")

    def _choose(self, wanted: str) -> None:
        device = self._model.bins.device
        reason = self._use_kernels()
        if self.kind == "kernels":
            self._say(logging.INFO, "Planning with the CPU kernels")
            return
        if device.type == "cpu" and (line := too_many_threads()):
            self._say(logging.WARNING, line)
        if wanted == "true" or not can_compile(device):
            self._say(logging.WARNING, reason + self._compile())
        else:
            self._plans = Counter()
            later = f"compiling the planner after {WORTH_COMPILING:,} plans, which takes about a minute"
            advice = "compile=True does it at once, compile=False never"
            self._say(logging.WARNING, f"{reason}Planning plainly, and {later}; {advice}")

    def _by_use(self, plans: Counter[int], num_envs: int) -> Callable[..., planner.Plan]:
        """The plain plan until there were enough for this number of environments."""
        plans[num_envs] += 1
        if plans[num_envs] <= WORTH_COMPILING:
            return planner.plan
        if self.kind == "plain":
            self._say(logging.WARNING, self._compile())
        return self._plan

    def _say(self, level: int, line: str) -> None:
        if not self._quiet:
            _log.log(level, line)

    # -- ways ---------------------------------------------------------------------------------------------------------

    def _use_kernels(self) -> str:
        """Use the CPU kernels, or return why there are none; nothing for another device."""
        if self._model.bins.device.type == "cpu":
            try:
                self._pack()
                self.kind = "kernels"
            except (RuntimeError, ValueError) as error:
                return f"{error}. "
        return ""

    def _pack(self) -> None:
        networks = PackedNetworks(self._model, self._products)
        self.functions = dict(networks.functions())
        self._plan = partial(planner.plan, **self.functions)
        self._networks = networks

    def _pack_or_leave(self) -> None:
        """Pack the weights anew, or plan plainly from now on if the model was moved: no address there is the CPU's."""
        if self._model.bins.device.type == "cpu":
            self._pack()
        else:
            self._plan_plainly()

    def _plan_plainly(self) -> None:
        self.kind, self.functions, self._networks, self._plan = "plain", {}, None, planner.plan

    def _compile(self) -> str:
        """Compile the planner if there is a compiler; returns a line about it."""
        device = self._model.bins.device
        if not can_compile(device):
            return f"Planning without compilation: no compiler for {device.type} found (for a CPU, install g++)"
        self.functions = compiled_functions(self._model)
        plan = partial(planner.plan, **self.functions)
        self._plan, self.kind = GraphedPlan(plan) if device.type == "cuda" else plan, "compiled"
        return "Compiling the planner on its first call (about a minute; compile=false turns it off)"
