"""The configuration: one frozen, validated object whose keys are the command line's."""

from tdmpc2.config.keys import MODEL_SIZES as MODEL_SIZES
from tdmpc2.config.keys import RUN_KEYS as RUN_KEYS
from tdmpc2.config.keys import Config as Config
from tdmpc2.config.keys import check_keys as check_keys
from tdmpc2.config.keys import defaults as defaults
from tdmpc2.config.keys import key_names as key_names
from tdmpc2.config.keys import parse_cfg as parse_cfg


def help_rows(command: str):  # type: ignore  # replaced by the key table
    from typing import NamedTuple

    class HelpRow(NamedTuple):
        key: str
        default: str
        values: str
        explanation: str
        section: str

    return [HelpRow(k, "null" if v is None else str(v), "any", "?", "Keys") for k, v in defaults().items()]
