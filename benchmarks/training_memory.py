"""Training memory: the planner's prediction of a training's peak memory against the measured one (CPU, Linux).

python -m benchmarks.training_memory
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tools.preparation.memory import BASE_BYTES, training_bytes

CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"patch_size": [48, 48, 48], "base_filters": 8, "num_classes": 1},
    {"patch_size": [64, 64, 32], "base_filters": 4, "num_classes": 2},
    {"patch_size": [32, 32, 32], "base_filters": 16, "num_classes": 1},
)


def added_bytes(configuration: Mapping[str, Any]) -> float:
    """What two training iterations with 2 + 2 crops add to a fresh process at their peak, weights included."""
    code = (
        "import json, sys, torch; from pathlib import Path; from tools.preparation.memory import TrainingStep;"
        "torch.set_num_threads(1); settings = json.loads(sys.argv[1]);"
        "status = lambda key: int(Path('/proc/self/status').read_text().split(key)[1].split()[0]) * 1024;"
        # A first small step loads the libraries; writing 5 then resets the high-water mark.
        "TrainingStep(**{**settings, 'patch_size': [16, 16, 16], 'base_filters': 1}, labeled=1, unlabeled=1)();"
        "Path('/proc/self/clear_refs').write_text('5'); before = status('VmRSS:');"
        "step = TrainingStep(**settings, labeled=2, unlabeled=2); step(); step(); print(status('VmHWM:') - before)"
    )
    command = [sys.executable, "-c", code, json.dumps(configuration)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Prints the table."""
    print("| configuration | predicted (MB) | measured (MB) | ratio |\n|---|---|---|---|")
    for configuration in CONFIGURATIONS:
        predicted = training_bytes(**configuration, crops=4) - BASE_BYTES["cpu"]
        measured = added_bytes(configuration)
        name = ", ".join(f"{key} {value}" for key, value in configuration.items())
        print(f"| {name} | {predicted / 1e6:.0f} | {measured / 1e6:.0f} | {predicted / measured:.2f} |")


if __name__ == "__main__":
    main()
