"""A short name of ``python -m tests.helpers.kill``."""

from tests.helpers.kill import main

if __name__ == "__main__":
    main()
