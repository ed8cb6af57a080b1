"""Kill runs: commands that are killed or find the disk full, and are started again, end as if nothing had happened.

``make crash``, or ``python -m tests.crash --kills 20 --commands train,collect --seed 1``.
"""
