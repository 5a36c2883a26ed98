"""Active: what labeling by a strategy brings against random labeling, simulated on cases whose labels are known.

    python -m benchmarks.active --dataset_dir DIR --output_dir DIR [--strategies "[random,combined]"] [--repeats 5]

Each repeat draws a pool of cases and the first labels of it. Every strategy then chooses from that pool, in rounds,
with the network of its last round; training goes on from that network's weights. A run that is finished is not run
again, so the command can be stopped and repeated, with further strategies, too. ``--report true`` only prints tables.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from benchmarks.dynamics import CASES, append, evaluate, parse, train
from tools.active.rank import ranked
from tools.command_line import run_command
from tools.ensemble import Ensemble

COMMON = {"val_interval": 1_000_000, "checkpoint_interval": 1_000_000, "log_interval": 1000, "splits": None}
# Settings of a data set: its cases for the pools, those for the report, and what keeps a run short on one core.
DATA: dict[str, dict[str, Any]] = {
    "hippocampus": {
        "pool": (0, 160),
        "report": (180, 200),
        "mirror": [0],
        "iterations": (600, 300),
        "overrides": {"base_filters": 8},
    },
    "left_atrium": {
        "pool": (0, 56),
        "report": (56, 80),
        "mirror": [0, 1],
        "iterations": (400, 240),
        "overrides": {
            "base_filters": 8,
            "spacing": [2.5, 2.5, 2.5],
            "patch_size": [64, 48, 32],
            "stride": [32, 24, 16],
        },
    },
}
METHODS: dict[str, dict[str, Any]] = {"supervised": {"objective#copy_paste": 0.6667}, "bcp": {}}


def simulate(
    dataset_dir: str,
    output_dir: str,
    data: str = "hippocampus",
    method: str = "supervised",
    strategies: Sequence[str] = ("random", "combined", "disagreement", "diversity"),
    labels: Sequence[int] = (2, 4, 8),
    repeats: int = 5,
    pool: int = 30,
    device: str = "cpu",
    report: bool = False,
) -> str:
    """Simulates labeling in rounds and prints the area under the learning curve of every strategy.

    Args:
        dataset_dir: folder of the data set's dataset.json, in which every case has its label.
        output_dir: gets cases.csv (Dice per report case and class), chosen.csv and the runs.
        data: hippocampus or left_atrium.
        method: supervised (labels only, with copy-paste between labeled crops) or bcp.
        strategies: see tools/active/strategies.py.
        labels: number of labels of every round.
        repeats: draws of pool and first labels.
        pool: cases among which a strategy chooses.
        device: cpu or cuda.
        report: only prints what is there.
    """
    logging.disable(logging.INFO)
    folder = Path(output_dir) / f"{data}_{method}"
    if not report:
        # Strategy by strategy: an interrupted simulation has complete comparisons of the first ones.
        for strategy in strategies:
            for repeat in range(repeats):
                repeat_of(strategy, repeat, folder, Path(dataset_dir), data, method, labels, pool, device)
    return table(read_curves(folder / "cases.csv"), labels)


def repeat_of(
    strategy: str,
    repeat: int,
    folder: Path,
    dataset: Path,
    data: str,
    method: str,
    labels: Sequence[int],
    pool: int,
    device: str,
) -> None:
    """All rounds of one strategy in one repeat; the first, before any choice, is the same for all strategies."""
    settings = DATA[data]
    entries = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["training"]
    cases = [{key: str((dataset / case[key]).resolve()) for key in ("image", "label")} for case in entries]
    drawn = np.random.default_rng(repeat).permutation(range(*settings["pool"]))[:pool]
    left, labeled = [cases[i] for i in drawn[labels[0] :]], [cases[i] for i in drawn[: labels[0]]]
    before: Path | None = None
    for turn, count in enumerate(labels):
        arm = strategy if turn else "first"
        run = folder / f"{arm}_{repeat}_{count}"
        chosen = run / "chosen.json"
        if turn and not chosen.exists():
            assert before is not None
            ensemble = Ensemble(
                str(before / "models"), before, mirror=settings["mirror"], device=device, num_labeled=len(labeled)
            )
            rows = ranked(ensemble, strategy, seed=repeat)[: count - len(labeled)]
            run.mkdir(parents=True, exist_ok=True)
            chosen.write_text(json.dumps([row["image"] for row in rows]), encoding="utf-8")
        if turn:
            images = json.loads(chosen.read_text(encoding="utf-8"))
            labeled += [case for image in images for case in left if case["image"] == image]
            left = [case for case in left if case["image"] not in images]
        row = {"arm": arm, "num_labeled": count, "draw": repeat, "seed": repeat}
        if not (run / "done").exists():
            run.mkdir(parents=True, exist_ok=True)
            lists = {"training": [*labeled, *left], "test": cases[slice(*settings["report"])]}
            (run / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
            overrides = {
                **COMMON,
                **settings["overrides"],
                **METHODS[method],
                **{name: str(path) for name, path in zip(("dataset_dir", "output_dir"), (run, run))},
                "ckpt_dir": str(run / "models"),
                "device": f"$torch.device('{device}')",
                "num_labeled": count,
                "seed": repeat,
                "max_iterations": settings["iterations"][min(turn, 1)],
                "initial_weights": None if before is None else str(before / "models" / "model.pt"),
            }
            names = ("train", f"data/{data}", "budgets/cpu", f"methods/{method}")
            parser = parse([f"configs/{name}.json" for name in names], overrides)
            train(parser, row)
            append(folder / "cases.csv", CASES, evaluate(parser, row))
            (run / "done").touch()
            print(*row.values(), f"{read_curves(folder / 'cases.csv')[arm][repeat][count]:.4f}", flush=True)
        before = run


def read_curves(path: Path) -> dict[str, dict[int, dict[int, float]]]:
    """Mean Dice over report cases and classes: strategy -> repeat -> number of labels -> Dice.

    An undefined Dice, of a class that neither mask nor label has, is left out.
    """
    values: dict[tuple[str, int, int], dict[tuple[str, str], float]] = defaultdict(dict)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            place = (row["arm"], int(row["draw"]), int(row["num_labeled"]))
            if row["masks"] == "network" and row["list"] == "test":
                values[place][row["case"], row["class"]] = float(row["dice"])  # of a run that was repeated, the last
    curves: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for (arm, repeat, count), found in values.items():
        curves[arm][repeat][count] = fmean(value for value in found.values() if np.isfinite(value))
    return curves


def area(curve: Mapping[int, float]) -> float:
    """Area under Dice over the logarithm of the number of labels, divided by its width: a mean Dice."""
    counts = sorted(curve)
    return float(np.trapezoid([curve[n] for n in counts], np.log2(counts)) / np.log2(counts[-1] / counts[0]))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (t); NaN for the width of a single value."""
    if len(values) < 2:
        return fmean(values), float("nan")
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return fmean(values), float(half)


def table(curves: Mapping[str, Mapping[int, Mapping[int, float]]], labels: Sequence[int]) -> str:
    """A row per strategy in Markdown: Dice per number of labels, area, and the paired difference to random."""
    head = ["strategy", "repeats", *(f"{n} labels" for n in labels), "area", "difference to random, 95 % interval"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    first = curves.get("first", {})
    whole: dict[str, dict[int, dict[int, float]]] = {}
    for arm, runs in curves.items():
        joined = {repeat: {**first.get(repeat, {}), **run} for repeat, run in runs.items()}
        if arm != "first":
            whole[arm] = {repeat: run for repeat, run in joined.items() if all(n in run for n in labels)}
    for arm, runs in whole.items():
        if not runs:
            continue
        means = [f"{fmean(run[n] for run in runs.values()):.3f}" for n in labels]
        areas = {repeat: area({n: run[n] for n in labels}) for repeat, run in runs.items()}
        difference = ""
        both = sorted(set(areas) & set(whole.get("random", {})))
        if arm != "random" and both:
            others = [area({n: whole["random"][repeat][n] for n in labels}) for repeat in both]
            mean, half = interval([areas[repeat] - other for repeat, other in zip(both, others)])
            difference = f"{mean:+.4f} +- {half:.4f} (n = {len(both)})"
        lines.append(
            "| " + " | ".join([arm, str(len(runs)), *means, f"{fmean(areas.values()):.4f}", difference]) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_command(simulate)
