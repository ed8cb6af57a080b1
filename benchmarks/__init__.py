"""Speed of each part against its plain version; results with dates are in RESULTS.md."""

from tdmpc2_start import bound_spinning

bound_spinning()  # with `python -m benchmarks.NAME`, as the commands do: what is timed is what users have
