"""Dynamics: trains the arms of a plan from paired seeds and records the validation Dice on the way.

    python -m benchmarks.dynamics --plan benchmarks/dynamics_stages.json --dataset_dir DIR --output_dir DIR

An arm is a set of overrides of the merged configs; all arms of a plan share the data, which is cached once. What is
already in ``<output_dir>/dynamics.csv`` is not run again.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import fire
import monai
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

COLUMNS = ["arm", "seed", "iteration", "val_dice", "seconds"]
# Instantiated once: the caches that every arm reads.
SHARED = ("train#dataset", "train#unlabeled_dataset", "validate#dataset")


def parse(configs: list[str], overrides: dict[str, Any]) -> ConfigParser:
    """The merged configs with ``overrides``."""
    parser = ConfigParser()
    parser.read_config(configs)
    parser.update(overrides)
    return parser


def run_arm(configs: list[str], overrides: dict[str, Any], shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains one arm and returns its rows (iteration, val_dice, seconds)."""
    parser = parse(configs, overrides)
    for name, dataset in shared.items():
        parser[name] = dataset
    monai.utils.set_determinism(seed=overrides["seed"])
    trainer = parser.get_parsed_content("train#trainer")
    evaluator = parser.get_parsed_content("validate#evaluator")
    start, rows = time.monotonic(), []

    def record(_: Engine) -> None:
        rows.append(
            {
                "iteration": trainer.state.iteration,
                "val_dice": round(evaluator.state.metrics["val_mean_dice"], 4),
                "seconds": round(time.monotonic() - start, 1),
            }
        )

    evaluator.add_event_handler(Events.COMPLETED, record)
    trainer.run()
    return rows


def main(plan: str, dataset_dir: str, output_dir: str, seeds: Any = None, threads: int | None = None) -> None:
    """Runs every arm of ``plan`` from every seed.

    Args:
        plan: JSON file with "configs" (list), "common" (overrides of all arms), "seeds" and "arms" (name -> overrides).
        dataset_dir: folder of the data set's dataset.json.
        output_dir: receives dynamics.csv and the runs.
        seeds: instead of the plan's, so that two processes can share the work.
        threads: CPU threads.
    """
    logging.disable(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    content = json.loads(Path(plan).read_text())
    results = Path(output_dir) / "dynamics.csv"
    results.parent.mkdir(parents=True, exist_ok=True)
    # From the plan's common settings: an arm may switch the unlabeled stream off, which would leave its cache empty.
    common = parse(content["configs"], {**content["common"], "dataset_dir": dataset_dir})
    shared = {name: common.get_parsed_content(name) for name in SHARED}
    for seed in content["seeds"] if seeds is None else seeds:
        for arm, overrides in content["arms"].items():
            done = results.exists() and any(
                row["arm"] == arm and int(row["seed"]) == seed for row in csv.DictReader(results.open())
            )
            if done:
                continue
            run_dir = f"{output_dir}/{arm}_{seed}"
            where = {"dataset_dir": dataset_dir, "output_dir": run_dir, "ckpt_dir": f"{run_dir}/models", "seed": seed}
            rows = run_arm(content["configs"], {**content["common"], **overrides, **where}, shared)
            new = not results.exists()
            with results.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerows({"arm": arm, "seed": seed, **row} for row in rows)
            print(arm, seed, [row["val_dice"] for row in rows], flush=True)


if __name__ == "__main__":
    fire.Fire(main)
