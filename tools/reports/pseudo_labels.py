"""Pseudo-labels: how good they are on the unlabeled training cases, whose labels training never saw (DBiSL Table 6).

python -m tools.reports.pseudo_labels --run_dir outputs/left_atrium --dataset_dir /data/left_atrium
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.transforms import Compose
from tqdm import tqdm

from scripts.data import DataError, Datalist, case_name, images_of
from scripts.inference import load_weights
from scripts.methods import DBiSLObjective, Objective
from scripts.methods.dbisl import unanimity_mask
from scripts.networks import Network
from scripts.networks.heads import foreground_probability, segmentation_heads
from tools.command_line import run_command
from tools.tables import markdown_table

SCORES = ("dice", "recall", "precision")
SHARES = ("unanimous_share", "unanimous_foreground_share")
FIGURES = (*SCORES, *(f"{score}_unanimous" for score in SCORES), *SHARES)
COLUMNS = ("case", "class", *FIGURES)


def overlap_scores(prediction: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Dice, recall and precision of a mask.

    Args:
        prediction: any shape, bool.
        reference: the same.

    Returns:
        The keys of ``SCORES``, in [0, 1]; NaN where there is nothing to divide by: recall of an empty reference,
        precision of an empty prediction, and Dice if both are empty.
    """
    hits, predicted, true = (int(mask.sum()) for mask in (prediction & reference, prediction, reference))
    parts = ((2 * hits, predicted + true), (hits, true), (hits, predicted))
    return {name: part / whole if whole else math.nan for name, (part, whole) in zip(SCORES, parts)}


def class_row(
    pseudo_label: torch.Tensor, unanimous: torch.Tensor, reference: torch.Tensor, known: torch.Tensor | None = None
) -> dict[str, float]:
    """The figures of one class of a case: over all voxels, and over those alone whose pseudo-label is believed.

    Args:
        pseudo_label: (H, W, D), [0, 1]; foreground above 1/2.
        unanimous: (H, W, D), bool, the mask M of Eq. 13.
        reference: (H, W, D), bool.
        known: (H, W, D), bool, where the reference is known; None for everywhere. Unknown voxels count for nothing.

    Returns:
        The scores of ``overlap_scores``; the same within M, with ``_unanimous`` behind their names; and
        ``unanimous_share``, the share of all voxels in M, and ``unanimous_foreground_share``, that of the reference's
        foreground (NaN without any). All are NaN, as the metrics, for a reference that is unknown in places and has no
        foreground elsewhere.
    """
    if known is not None and not known.all():
        pseudo_label, unanimous, reference = pseudo_label[known], unanimous[known], reference[known]
        if not reference.any():
            return dict.fromkeys(FIGURES, math.nan)
    prediction = pseudo_label > 0.5
    within = overlap_scores(prediction[unanimous], reference[unanimous])
    return {
        **overlap_scores(prediction, reference),
        **{f"{score}_unanimous": value for score, value in within.items()},
        "unanimous_share": float(unanimous.float().mean()),
        "unanimous_foreground_share": overlap_scores(unanimous, reference)["recall"],
    }


def head_stacks(window: torch.Tensor, network: Network, num_classes: int) -> dict[str, torch.Tensor]:
    """The heads of a network in evaluation mode on a window (B, channels, H, W, D), stacked by their kind.

    Returns:
        ``probability`` (B, P * C, H, W, D) of P segmentation heads and ``distance`` of the distance heads.
    """
    heads = network.forward_heads(window)
    probability = [foreground_probability(head, num_classes) for head in segmentation_heads(heads).values()]
    distance = [head for name, head in heads.items() if name.startswith("distance")]
    if not probability:
        raise DataError(f"the run's network has no segmentation head to make pseudo-labels, only {sorted(heads)}.")
    stacks = {"probability": probability, "distance": distance}
    return {name: torch.cat(stack, dim=1).float() for name, stack in stacks.items() if stack}


def pseudo_labels(objective: Objective, stacks: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pseudo-label and mask, (B, C, H, W, D) each, as the run's objective makes them.

    DBiSL's are Eq. 12 and 13 with the settings of the run. Of any other method they are the mean of its segmentation
    heads, and where these agree: everywhere if there is one. ``stacks`` are from :func:`head_stacks`.
    """
    classes = objective.label_coding.num_classes
    heads = {name: stack.unflatten(1, (-1, classes)).transpose(0, 1) for name, stack in stacks.items()}
    if isinstance(objective, DBiSLObjective):
        return objective.pseudo_labels(heads["probability"], heads["distance"])
    return heads["probability"].mean(0), unanimity_mask(heads["probability"], None)


def hidden_cases(datalist: Datalist, num_labeled: int) -> list[dict[str, Any]]:
    """The unlabeled training cases that have a label file after all, image and label.

    Raises:
        DataError: when there is none.
    """
    unlabeled = datalist.training[num_labeled:]
    cases = [case for case in unlabeled if "label" in case and Path(case["label"]).is_file()]
    if not cases:
        raise DataError(
            f"{datalist.path} has {len(unlabeled)} unlabeled training cases and no label file of any: pseudo-labels "
            "can only be measured where the labels exist and were kept from training."
        )
    return cases


def read_run(run_dir: str | Path, **changes: Any) -> ConfigParser:
    """The config that a run was trained with.

    Args:
        run_dir: the training's output_dir, with its run.json.
        changes: ids and their values instead of the run's.

    Raises:
        DataError: when there is no run.json, or it has no settings.
    """
    path = Path(run_dir) / "run.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist: give the output_dir of a training as --run_dir.")
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    if config is None:
        raise DataError(
            f"{path} has no settings: the program that trained kept them. Train by python -m scripts train."
        )
    parser = ConfigParser(config)
    parser.update({name: value for name, value in changes.items() if value is not None})
    return parser


@torch.no_grad()
def measure(parser: ConfigParser, path: Path, cases: int | None = None) -> list[dict[str, Any]]:
    """Writes a row per unlabeled case and class to a CSV file, each as soon as it is known, and returns them.

    Everything lies on the network's grid, where training sees the pseudo-labels: labels are resampled as the labeled
    ones are. The windows are those of the run's validation, and probabilities and distances their means; training sees
    one window, and dropout. ``cases`` takes the first so many alone; ``parser`` is from :func:`read_run`.
    """
    get = parser.get_parsed_content
    network, objective, device = get("network").eval(), get("objective"), get("device")
    load_weights(Path(get("ckpt_dir")) / "model.pt", network)
    windows, coding = get("validate#inferer"), objective.label_coding
    names = get("class_names") or [str(c + 1) for c in range(coding.num_classes)]
    listed = hidden_cases(get("datalist"), get("num_labeled"))[:cases]
    volumes = Dataset(listed, Compose(get("train#load_transforms")))
    rows: list[dict[str, Any]] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, case in enumerate(tqdm(listed, unit="case")):
            volume = volumes[number]
            label, mask = pseudo_labels(
                objective, windows(volume["image"][None].to(device), head_stacks, network, coding.num_classes)
            )
            marked = volume["label"][None].cpu()  # cache_device may be another
            reference, known = coding.encode(marked)[0] > 0.5, coding.known(marked)
            for c, name in zip(range(coding.num_classes), names):
                where = None if known is None else known[0, c]
                row = class_row(label[0, c].cpu(), mask[0, c].cpu(), reference[c], where)
                rows.append({"case": case_name(images_of(case)[0]), "class": name, **row})
                writer.writerow(rows[-1])
            file.flush()
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and sample standard deviation over the cases, with and without the mask, in Markdown."""
    header = ["class", "voxels", "Dice", "recall", "precision", "share of voxels", "share of the foreground"]
    lines = []
    for name in dict.fromkeys(row["class"] for row in rows):
        own = [row for row in rows if row["class"] == name]
        for voxels, ending, shares in (("all", "", ["1", "1"]), ("unanimous", "_unanimous", None)):
            cells = [spread([row[score + ending] for row in own]) for score in SCORES]
            cells += shares or [spread([row[share] for row in own]) for share in SHARES]
            lines.append([name, voxels, *cells])
    return markdown_table(header, lines)


def spread(values: Sequence[float]) -> str:
    """Mean +- standard deviation of the values that are not NaN, and their number where some are."""
    finite = [value for value in values if not math.isnan(value)]
    if not finite:
        return "none"
    text = f"{fmean(finite):.3f}" + (f" +- {stdev(finite):.3f}" if len(finite) > 1 else "")
    return text if len(finite) == len(values) else f"{text} (n = {len(finite)})"


def main(
    run_dir: str,
    dataset_dir: str,
    model_dir: str | None = None,
    path: str | None = None,
    cases: int | None = None,
    device: str | None = None,
) -> None:
    """Compares a run's pseudo-labels of its unlabeled training cases with their labels, which it was not shown.

    Args:
        run_dir: the training's output_dir.
        dataset_dir: of the data set that it was trained on.
        model_dir: the training's ckpt_dir; by default what the run's config says.
        path: of the CSV file; <run_dir>/pseudo_labels.csv by default.
        cases: measures the first so many unlabeled cases alone.
        device: such as cpu or cuda:0; by default what the run's config says.
    """
    parser = read_run(run_dir, dataset_dir=dataset_dir, ckpt_dir=model_dir, device=device)
    file = Path(path) if path else Path(run_dir) / "pseudo_labels.csv"
    rows = measure(parser, file, cases)
    print(f"{table(rows)}\n\n{len(rows)} rows in {file}")


if __name__ == "__main__":
    run_command(main)
