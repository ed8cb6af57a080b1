"""TD-MPC-Opt: distil and quantise TD-MPC2 world models.

The names below are resolved on first use, so that ``import tdmpc2`` only registers the environments.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tdmpc2.envs import make_env, register

if TYPE_CHECKING:
    from tdmpc2.agent import TDMPC2
    from tdmpc2.config import Config, parse_cfg
    from tdmpc2.loading import load_agent
    from tdmpc2.nn.world_model import WorldModel

    __version__: str

__all__ = ["TDMPC2", "Config", "WorldModel", "__version__", "load_agent", "make_env", "parse_cfg"]

_HOMES = {
    "TDMPC2": "tdmpc2.agent",
    "Config": "tdmpc2.config",
    "parse_cfg": "tdmpc2.config",
    "load_agent": "tdmpc2.loading",
    "WorldModel": "tdmpc2.nn.world_model",
}

register()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("tdmpc2.support.version").version()
    if name == "parse_cfg":  # what it parses is composed by Hydra, which has to know the defaults before
        import_module("tdmpc2.config").register_defaults()
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tdmpc2' has no attribute '{name}'")
