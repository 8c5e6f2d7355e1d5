"""Inputs of the scheduler's and the twin's tests serve here too."""

import sys
from pathlib import Path

for room in ("core", "twin"):
    sys.path.append(str(Path(__file__).parent.parent / room))
