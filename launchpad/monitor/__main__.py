"""The monitor as a process of its own: `python -m launchpad.monitor CHECKOUT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launchpad.children import give_way

give_way(10)  # what is watched goes first, also while this program is still being loaded

from launchpad.monitor.watch import in_background  # noqa: E402

parser = argparse.ArgumentParser(prog="launchpad.monitor")
parser.add_argument("root", type=Path)
parser.add_argument("--interval", type=float, default=0.0)
parser.add_argument("--duration", type=float, default=0.0)
given = parser.parse_args()
sys.exit(in_background(given.root, given.interval, given.duration))
