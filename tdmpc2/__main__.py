"""``python -m tdmpc2 COMMAND``, the same as ``tdmpc2 COMMAND``."""

from tdmpc2_start import main

if __name__ == "__main__":
    main()
