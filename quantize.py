"""Write a checkpoint in fp16, int8 and mixed precision and measure what that costs: `python quantize.py --help`."""

from __future__ import annotations

from tdmpc2_start import prepare

prepare()  # before the slow imports

from tdmpc2.commands.quantize import main

if __name__ == "__main__":
    main()
