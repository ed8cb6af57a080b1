"""Former name of ``tdmpc2 targets``, kept for one release."""

from tdmpc2.commands.targets import main

if __name__ == "__main__":
    main()
