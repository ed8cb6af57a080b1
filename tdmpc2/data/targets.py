"""Former name of ``tdmpc2 targets``, deprecated."""

from tdmpc2.commands.targets import main
from tdmpc2.support.deprecation import deprecated

if __name__ == "__main__":
    deprecated("python -m tdmpc2.data.targets", "tdmpc2 targets", command=True)
    main()
