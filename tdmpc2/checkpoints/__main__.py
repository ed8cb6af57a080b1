"""``python -m tdmpc2.checkpoints``: look at and convert checkpoints."""

import sys

from tdmpc2.checkpoints.files import main

if __name__ == "__main__":
    sys.exit(main())
