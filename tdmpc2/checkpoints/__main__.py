"""``python -m tdmpc2.checkpoints``, the same as ``tdmpc2 checkpoint``."""

from tdmpc2.commands.checkpoint import main

if __name__ == "__main__":
    main()
