"""List the configuration keys.

python -m tdmpc2.config                                     all keys with default, values and explanation
python -m tdmpc2.config evaluate                            those that matter to a command
python -m tdmpc2.config --write docs/configuration.md       write the reference page
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

from rich import box, get_console
from rich.table import Table

from tdmpc2.config.facts import COMMANDS
from tdmpc2.config.reference import markdown
from tdmpc2.config.tables import help_rows
from tdmpc2.support.files import write_text


def main(arguments: list[str] | None = None) -> None:
    """Print the keys, or write the reference page."""
    parser = argparse.ArgumentParser(prog="python -m tdmpc2.config", description="List the configuration keys.")
    parser.add_argument("command", nargs="?", choices=COMMANDS, help="only keys that matter to this command")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write docs/configuration.md instead")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        write_text(chosen.write, markdown())
        print(f"wrote {chosen.write}")
        return
    for section, rows in groupby(help_rows(chosen.command), key=lambda row: row.section):
        table = Table("key", "default", "values", "what it is", title=section, title_justify="left", box=box.SIMPLE)
        for row in rows:
            table.add_row(row.key, row.default, row.values, row.explanation)
        get_console().print(table, highlight=False, markup=False)


if __name__ == "__main__":
    main()
