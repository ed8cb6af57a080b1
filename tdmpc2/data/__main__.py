"""``python -m tdmpc2.data``, the same as ``tdmpc2 data``."""

from tdmpc2.commands.data import main

if __name__ == "__main__":
    main()
