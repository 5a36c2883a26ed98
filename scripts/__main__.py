"""The short command: ``python -m scripts train left_atrium dtc``, or ``python /path/of/the/bundle/scripts ...``."""

import sys
from pathlib import Path

if not __package__:  # called by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
