"""Benchmarks: ratios of our work to a reference, measured side by side in one run.

    python -m benchmarks.run [--threads 1] [--repeats 5] [--only transform,inference] [--dataset_dir DIR]

Prints one table and writes outputs/benchmarks.json. The groups: transform, classes (eight instead of one), growth (with
the volume), trainer, method (DBiSL against DTC's loop), inference, start, cache and preflight.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch

from benchmarks import data, inference, iteration, transform

EIGHT_CLASSES = ["exact, factor 1", "exact, factor 0.5", "cascade, factor 0.5"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    header = ("work", "ours (s)", "reference", "reference (s)", "ratio", "peak (MB)", "accuracy")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        peak = row.get("peak_mb")
        cells = [row["work"], f"{row['ours_s']:.3f}", row["reference"], f"{row['reference_s']:.3f}"]
        cells += [f"{row['ratio']:.2f}", "" if peak is None else f"{peak:.0f}", row.get("accuracy") or ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    threads: int = 1,
    repeats: int = 5,
    iterations: int = 40,
    only: str | tuple[str, ...] = (),
    dataset_dir: str | None = None,
    output: str = "outputs/benchmarks.json",
) -> None:
    """Runs the benchmarks.

    Args:
        threads: CPU threads. With one, times are those of the processor, else wall clock.
        repeats: of each work.
        iterations: of each loop of "trainer".
        only: names of groups, all of them by default.
        dataset_dir: of "cache"; synthetic scans by default.
        output: JSON file with the table and the machine.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    groups: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "transform": lambda: transform.rows(repeats),
        "classes": lambda: transform.rows(max(1, repeats // 2), classes=8, names=EIGHT_CLASSES),
        "growth": lambda: transform.growth_rows(repeats),
        "trainer": lambda: [iteration.trainer_row(iterations)],
        "method": lambda: [iteration.method_row(repeats)],
        "inference": lambda: inference.rows(repeats),
        "start": lambda: inference.start_rows(repeats),
        "cache": lambda: [data.cache_row(dataset_dir)],
        "preflight": lambda: [data.preflight_row()],
    }
    chosen = (only.split(",") if isinstance(only, str) else list(only)) or list(groups)
    if unknown := set(chosen) - set(groups):
        raise ValueError(f"only is {sorted(unknown)}; the groups are {', '.join(groups)}.")
    rows = [row for name in chosen for row in groups[name]()]
    print(table(rows))
    machine = {"processor": platform.machine(), "threads": threads, "torch": torch.__version__}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
