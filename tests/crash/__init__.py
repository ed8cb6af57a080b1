"""Kill runs: commands that were killed or found the disk full end, once restarted, as if undisturbed.

``make crash``, or ``python -m tests.crash --kills 20 --commands train,collect --seed 1``.
"""
