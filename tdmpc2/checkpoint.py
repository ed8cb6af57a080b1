"""Former name of ``python -m tdmpc2.checkpoints``, kept for one release."""

import sys

from tdmpc2.checkpoints.files import main

if __name__ == "__main__":
    sys.exit(main())
