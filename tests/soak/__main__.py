"""``python -m tests.soak``."""

from tests.soak.session import main

if __name__ == "__main__":
    main()
