"""``python -m tests.crash``."""

from tests.crash.session import main

if __name__ == "__main__":
    main()
