"""Versions of the weights that act: in a few microseconds they tell whether one has changed since it was packed."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from tdmpc2.nn.world_model import WorldModel

_UNSIGNED: dict[int, Any] = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


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
        self._addresses = [x.data_ptr() for x in weights]
        self._samples = [
            _UNSIGNED[x.element_size()].from_address(address + place)
            for x, address in zip(weights, self._addresses, strict=True)
            for place in _places(x)
        ]
        self._packed = self._written()

    def changed(self) -> bool:
        """Tell whether a weight was written or replaced, as far as PyTorch knows or two numbers of it tell.

        Fused optimisers and writes through ``.data`` do not tell PyTorch; they change all numbers of a weight.
        """
        if [x.data_ptr() for x in self._weights] != self._addresses:
            return True  # the samples may be memory that is no weight any more
        if self._written() != self._packed:
            return True
        return any(table.get(name) is not held for table, name, held in self._places)

    def _written(self) -> tuple[list[int], list[int]]:
        return [x._version for x in self._counted], [sample.value for sample in self._samples]


def _places(x: Tensor) -> tuple[int, ...]:
    """Offsets in bytes of the first number of a tensor and of one in the middle."""
    if not x.numel():
        return ()
    return (0, x.numel() // 2 * x.element_size()) if x.is_contiguous() and x.numel() > 1 else (0,)
