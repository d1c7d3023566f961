"""Chaos: a few agents, a load, and every fault we know of, in random order; then a proof from the log.

    python tests/chaos/chaos.py --duration 60 --seed 1

`stratum up` runs as it would under systemd: it is started again when it dies. The last line on
stdout is one JSON object with the seed, the faults done, the figures and `"ok"`; the exit code says
the same. Where something is wrong, what it is stands on stderr, and the data folder is kept.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(importlib.import_module("tests.chaos.harness").main())
