"""Former name of ``tdmpc2 checkpoint``, deprecated."""

from tdmpc2.commands.checkpoint import main
from tdmpc2.support.deprecation import deprecated

if __name__ == "__main__":
    deprecated("python -m tdmpc2.checkpoint", "tdmpc2 checkpoint", command=True)
    main()
