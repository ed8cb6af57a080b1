"""The configuration: one frozen, validated object whose keys are the command line's."""

from tdmpc2.config.aliases import key_hint as key_hint
from tdmpc2.config.config import Config as Config
from tdmpc2.config.config import completed as completed
from tdmpc2.config.config import from_record as from_record
from tdmpc2.config.config import has_teacher as has_teacher
from tdmpc2.config.config import parse_cfg as parse_cfg
from tdmpc2.config.distillation_keys import distillation_terms as distillation_terms
from tdmpc2.config.facts import COMMANDS as COMMANDS
from tdmpc2.config.facts import Key as Key
from tdmpc2.config.mix import MixEntry as MixEntry
from tdmpc2.config.sizes import MODEL_SIZES as MODEL_SIZES
from tdmpc2.config.tables import CHANGEABLE as CHANGEABLE
from tdmpc2.config.tables import KEYS as KEYS
from tdmpc2.config.tables import ONE_START_KEYS as ONE_START_KEYS
from tdmpc2.config.tables import PLANNER_KEYS as PLANNER_KEYS
from tdmpc2.config.tables import RUN_KEYS as RUN_KEYS
from tdmpc2.config.tables import UNDECISIVE as UNDECISIVE
from tdmpc2.config.tables import WIDTHS as WIDTHS
from tdmpc2.config.tables import HelpRow as HelpRow
from tdmpc2.config.tables import as_typed as as_typed
from tdmpc2.config.tables import check_keys as check_keys
from tdmpc2.config.tables import defaults as defaults
from tdmpc2.config.tables import help_rows as help_rows
from tdmpc2.config.tables import key_names as key_names
from tdmpc2.config.values import is_nothing as is_nothing
