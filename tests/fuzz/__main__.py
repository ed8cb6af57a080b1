"""``python -m tests.fuzz``."""

from tests.fuzz.session import main

if __name__ == "__main__":
    main()
