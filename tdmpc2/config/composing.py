"""Defaults of all keys, on which Hydra composes the YAML files."""

from __future__ import annotations

from tdmpc2.config.tables import defaults


def register_defaults() -> None:
    """Tell Hydra the defaults that ``student_config/*.yaml`` name as ``base``; the commands do this by themselves.

    In a notebook or a program of one's own call it before ``hydra.compose``; ``from tdmpc2 import parse_cfg`` does it,
    too. ::

        from hydra import compose, initialize
        from tdmpc2 import parse_cfg

        with initialize(config_path="../student_config", version_base="1.3"):
            cfg = parse_cfg(compose("config_mt30", overrides=["steps=1000"]))
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="base", node=defaults())
    store.store(name="base", group="student_config", node=defaults())
