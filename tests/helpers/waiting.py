"""A module whose import never ends, like a simulator that hangs."""

import threading

threading.Event().wait()
