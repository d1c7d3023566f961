"""How slow the machine is just now, since others use it too."""

from __future__ import annotations

import time

MEASURED_SECONDS = 1.0
AT_LEAST, AT_MOST = 1.5, 6.0
"""A machine at rest may get something else to do meanwhile; and one day it has to be over."""


def measured() -> float:
    """How many times longer something takes than it computes, and some more."""
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < MEASURED_SECONDS:
        pass
    slower = MEASURED_SECONDS / max(time.process_time() - used, 0.01)
    return round(min(max(slower * AT_LEAST, AT_LEAST), AT_MOST), 2)
