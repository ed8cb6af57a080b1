"""Former name of ``tdmpc2 checkpoint``, kept for one release."""

from tdmpc2.commands.checkpoint import main

if __name__ == "__main__":
    main()
