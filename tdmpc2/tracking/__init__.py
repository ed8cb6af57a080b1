"""Reports of a run to people: console and ``train.log``, CSV files, Weights & Biases, progress.

``logger.py`` is the one interface to all of them; ``names.py`` has the names of all metrics in one table.
"""

from tdmpc2.tracking.curves import Curve, read_curves

__all__ = ["Curve", "read_curves"]
