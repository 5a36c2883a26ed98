"""Dynamics: trains the arms of a plan on paired seeds and draws of the labeled cases, and evaluates each at its end.

    python -m benchmarks.dynamics --plan benchmarks/plans/dynamics_pace.json --dataset_dir DIR --output_dir DIR

An arm is a list of overlays and a set of overrides. Every run has a cache of its own, so arms may change what is
cached and the augmentation. Several processes may share an ``output_dir``: each run is done by one of them, and what is
finished is not run again.
"""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import monai
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import CacheDataset

from scripts.evaluation.metrics import segmentation_metrics

RUN = ("arm", "num_labeled", "draw", "seed")
HISTORY = (*RUN, "iteration", "val_dice", "seconds")
CASES = (*RUN, "list", "case", "class", "masks", "dice", "hd95_mm", "asd_mm")


def parse(configs: list[str], overrides: dict[str, Any]) -> ConfigParser:
    """The merged configs with ``overrides``."""
    parser = ConfigParser()
    parser.read_config(configs)
    parser.update(overrides)
    return parser


def runs(plan: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str], dict[str, Any]]]:
    """Every run of the plan: its row's first columns, its configs and its overrides."""
    for num_labeled in plan.get("num_labeled", [None]):
        for draw in plan.get("draws", [0]):
            for seed in plan["seeds"]:
                for name, arm in plan["arms"].items():
                    whole = arm if "overrides" in arm or "configs" in arm else {"overrides": arm}
                    own = dict(whole.get("overrides", {}))
                    labels = own.get("num_labeled", num_labeled)
                    row = {"arm": name, "num_labeled": labels, "draw": draw, "seed": seed}
                    given = {} if num_labeled is None else {"num_labeled": num_labeled}
                    overrides = {**plan["common"], **given, "labeled_draw": draw, "seed": seed, **own}
                    yield row, [*plan["configs"], *whole.get("configs", [])], overrides


@torch.no_grad()
def evaluate(parser: ConfigParser, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``CASES``: validation and test cases by the network's mean and by its distance heads, where it has them.

    On the grid on which the network works, so neither resampled back nor with the largest part kept.
    """
    network = parser.get_parsed_content("network").eval()
    coding = parser.get_parsed_content("label_coding")
    inferer = parser.get_parsed_content("validate#inferer")
    device = parser.get_parsed_content("device")
    to_mask = parser.get_parsed_content("distance_to_segmentation")
    test = CacheDataset(
        parser.get_parsed_content("datalist").test, parser.get_parsed_content("validate#preprocessing"), progress=False
    )
    names = parser.get_parsed_content("class_names") or [str(c + 1) for c in range(coding.num_classes)]
    spacing = parser.get_parsed_content("spacing") or (1.0, 1.0, 1.0)

    def probabilities(image: torch.Tensor) -> torch.Tensor:
        heads = network.forward_heads(image)
        distances = [to_mask(head.float()) for name, head in heads.items() if name.startswith("distance")]
        parts = [network.probability(image).float()]
        if distances and "logits" not in heads or len(distances) > 1:
            parts.append(torch.stack(distances).mean(0))
        return torch.cat(parts, 1)

    rows = []
    for name, dataset in (("validation", parser.get_parsed_content("validate#dataset")), ("test", test)):
        for number in range(len(dataset)):
            item = dataset[number]
            found = inferer(item["image"][None].as_subclass(torch.Tensor).to(device), probabilities)
            label = coding.encode(item["label"][None].as_subclass(torch.Tensor).to(device))[0] > 0.5
            parts = found.split(coding.num_classes, 1)
            kinds = {"network": parts[0]}
            if len(parts) > 1:
                kinds |= {"distance": parts[1], "all_heads": (parts[0] + parts[1]) / 2}
            for kind, probability in kinds.items():
                mask = coding.harden(probability)[0] > 0.5
                for c, class_name in enumerate(names):
                    values = segmentation_metrics(mask[c], label[c], spacing=spacing)
                    kept = {metric: round(values[metric], 4) for metric in ("dice", "hd95_mm", "asd_mm")}
                    rows.append({**row, "list": name, "case": number, "class": class_name, "masks": kind, **kept})
    return rows


def train(parser: ConfigParser, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains a run and returns its rows of ``HISTORY``."""
    monai.utils.set_determinism(seed=row["seed"])
    trainer = parser.get_parsed_content("train#trainer")
    evaluator = parser.get_parsed_content("validate#evaluator")
    start, rows = time.monotonic(), []

    def record(_: Engine) -> None:
        value = round(evaluator.state.metrics["val_mean_dice"], 4)
        seconds = round(time.monotonic() - start, 1)
        rows.append({**row, "iteration": trainer.state.iteration, "val_dice": value, "seconds": seconds})

    evaluator.add_event_handler(Events.COMPLETED, record)
    trainer.run()
    return rows


def append(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Adds rows to a table that other processes write, too."""
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def work(plans: list[tuple[Path, dict[str, Any]]], where: dict[str, Any], threads: int | None) -> None:
    """Does one run of the plans after the other that is neither done nor being done."""
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", message="NvImgCodec")
    if threads:
        torch.set_num_threads(threads)
    for output, plan in plans:
        for row, configs, overrides in runs(plan):
            folder = output / "_".join(str(value) for value in row.values())
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "claim").open("w") as claim:
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if not (folder / "done").exists():
                    do(output, folder, row, configs, {**overrides, **where})


def do(output: Path, folder: Path, row: dict[str, Any], configs: list[str], overrides: dict[str, Any]) -> None:
    """One run; what fails is left in ``error.txt`` and does not stop the others."""
    own = {"output_dir": str(folder), "ckpt_dir": str(folder / "models"), "mlflow": False}
    try:
        parser = parse(configs, {**overrides, **own})
        history = train(parser, row)
        append(output / "cases.csv", CASES, evaluate(parser, row))
        append(output / "dynamics.csv", HISTORY, history)
    except Exception:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        print(f"failed: {folder}/error.txt", flush=True)
        return
    (folder / "done").touch()
    print(*row.values(), *(f"{one['val_dice']} ({one['seconds']} s)" for one in history[-1:]), flush=True)


def main(
    plan: str | tuple[str, ...],
    dataset_dir: str,
    output_dir: str,
    workers: int = 1,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Runs every arm of ``plan`` for every number of labels, draw and seed.

    Args:
        plan: JSON file, or several, separated by commas, with "configs" (list), "common" (overrides of all arms),
            "seeds", optionally "num_labeled" and "draws", and "arms": name -> {"configs": [...], "overrides": {...}},
            or the overrides alone.
        dataset_dir: folder of the data set's dataset.json.
        output_dir: receives for every plan, in a folder of its name, dynamics.csv (validation on the way), cases.csv
            (at the end) and the runs.
        workers: processes that share the runs.
        device: "cpu" or "cuda"; a GPU if there is one by default.
        threads: CPU threads of each process.
    """
    paths = [Path(path) for path in (plan.split(",") if isinstance(plan, str) else plan)]
    plans = [(Path(output_dir) / path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    where: dict[str, Any] = {"dataset_dir": dataset_dir}
    if device:
        where["device"] = f"$torch.device('{device}')"
    if workers == 1:
        work(plans, where, threads)
        return
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(plans, where, threads)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    fire.Fire(main)
