"""Former module of ``python -m tdmpc2.heldout``, kept for one release."""

from tdmpc2.studies.heldout import main

if __name__ == "__main__":
    main()
