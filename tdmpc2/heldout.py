"""Former name of ``tdmpc2 heldout``, deprecated."""

from tdmpc2.commands.heldout import main
from tdmpc2.support.deprecation import deprecated

if __name__ == "__main__":
    deprecated("python -m tdmpc2.heldout", "tdmpc2 heldout", command=True)
    main()
