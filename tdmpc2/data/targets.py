"""Former module of ``python -m tdmpc2.data.targets``, kept for one release."""

from tdmpc2.training.teacher_cache import main

if __name__ == "__main__":
    main()
