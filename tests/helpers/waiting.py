"""A module whose import ends only with its process, like a simulator that hangs."""

import threading

threading.Event().wait()
