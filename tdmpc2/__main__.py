"""``python -m tdmpc2 COMMAND``, the same as ``tdmpc2 COMMAND``."""

from tdmpc2.commands import main

if __name__ == "__main__":
    main()
