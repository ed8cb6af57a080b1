"""Former name of ``tdmpc2 heldout``, kept for one release."""

from tdmpc2.commands.heldout import main

if __name__ == "__main__":
    main()
