"""Versions of the weights that act: in a few microseconds they tell whether one has changed since it was packed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdmpc2.nn.world_model import WorldModel


class WeightVersions:
    """The addresses of all weights that act, and how often each was written.

    The places where a model keeps them are looked up once, so that asking again walks no modules: that took as long as
    an action of the policy.

    Args:
        model: whose weights are packed.
    """

    def __init__(self, model: WorldModel) -> None:
        networks = model.networks()
        tables: list[dict[str, Any]] = []
        for module in (module for network in networks for module in network.module.modules()):
            tables += [module._modules, module._parameters, module._buffers]
        places = [(table, name, held) for table in tables for name, held in table.items() if held is not None]
        for path in (network.name.split(".") for network in networks):  # where the networks themselves are
            for end in range(len(path)):
                table = model.get_submodule(".".join(path[:end]))._modules
                places.append((table, path[end], table[path[end]]))
        places.append((model._buffers, "bins", model.bins))
        self._places = places
        weights = [held for *_, held in places if isinstance(held, Tensor)]
        self._weights = weights
        self._counted = [x for x in weights if not x.is_inference()]  # the others count no writes
        self._packed = self._written()

    def changed(self) -> bool:
        """Tell whether a weight was written or replaced, as far as PyTorch knows: fused optimisers do not tell it."""
        if self._written() != self._packed:
            return True
        return any(table.get(name) is not held for table, name, held in self._places)

    def _written(self) -> tuple[list[int], list[int]]:
        return [x.data_ptr() for x in self._weights], [x._version for x in self._counted]
