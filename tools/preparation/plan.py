"""Plan: reads a data set and writes a data overlay for training: patch, spacing, intensities, batch, and why.

python -m scripts plan --dataset_dir data --output plan.json --memory_gb 16 --device cpu
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.command import program
from scripts.data import DataError, Datalist, LabelCoding
from scripts.data.machine import total_memory
from tools.command_line import run_command

from . import choices, patches
from .declared import class_names, declared_ignore_value, declared_modalities, declared_values
from .fingerprint import Fingerprint, read_fingerprints
from .memory import seconds_per_iteration
from .pairing import shortened

DEVICES = ("cpu", "gpu")
DEFAULT_ITERATIONS = 17_000  # of configs/train.json
MODALITIES = ("ct", "mr")
UNKNOWN_MEMORY = 8e9  # bytes that are planned for where the system does not say what there is


def make_plan(
    *,
    dataset_dir: str,
    output: str,
    memory_gb: float | None = None,
    device: str | None = None,
    num_labeled: int | None = None,
    splits: dict[str, Sequence[int]] | None = None,
    spacing: Sequence[float] | None = None,
    modality: str | None = None,
    regions: Sequence[Sequence[int]] | None = None,
    ignore_value: int | None = None,
    max_iterations: int | None = None,
) -> None:
    """Writes the overlay and prints one line per choice, and the command that trains with it.

    Images of the training cases are read, and labels of the labeled ones only; validation and test cases are not.

    Args:
        dataset_dir: folder of dataset.json.
        output: file to write, an overlay for ``python -m scripts train``.
        memory_gb: of the GPU, or of the machine for training on the CPU; by default what is there, on a CPU half of it.
        device: "cpu" or "gpu"; by default whether there is a GPU.
        num_labeled: labeled cases; by default all training cases up to the first without a label.
        splits: as in the config, for a dataset.json whose training list holds all cases.
        spacing: mm, instead of the median.
        modality: "ct" or "mr", instead of the guess.
        regions: as in the config, for overlapping regions.
        ignore_value: as in the config, the label value of voxels that nobody annotated; by default that of a label
            which dataset.json calls ignore.
        max_iterations: as in the config.

    Raises:
        DataError: when the data set or an argument cannot be used.
        UserError: when a training would refuse ``ignore_value``, or so many classes of partial labels.
    """
    device, memory = resources(device, memory_gb)
    if modality not in (None, *MODALITIES):
        raise DataError(f"modality is {modality!r}; it must be one of {', '.join(MODALITIES)}.")
    datalist = Datalist(dataset_dir, splits=splits)
    if num_labeled is None:
        num_labeled = next(
            (n for n, case in enumerate(datalist.training) if "label" not in case), len(datalist.training)
        )
    labeled = datalist.labeled(num_labeled)
    header = json.loads(datalist.path.read_text(encoding="utf-8"))
    declared = declared_ignore_value(header) if ignore_value is None else None
    ignore_value = declared if ignore_value is None else ignore_value
    cases = read_fingerprints([*labeled, *datalist.unlabeled(num_labeled)], ignore_value=ignore_value)
    overlay, reasons = plan(
        cases,
        header,
        device=device,
        memory=memory,
        spacing=spacing,
        modality=modality,
        regions=regions,
        max_iterations=max_iterations,
    )
    # Raises what the training would raise.
    LabelCoding(overlay["num_classes"], regions, ignore_value=ignore_value, partial=datalist.partial)
    if declared is not None:
        reasons.insert(1, f"ignore_value {declared}: dataset.json calls this label value ignore.")
    overlay = {
        "about": f"Planned for {datalist.path.parent.resolve().name}. " + " ".join(reasons),
        "num_labeled": num_labeled,
        **overlay,
    }
    if splits:
        overlay["splits"] = splits
    if ignore_value is not None:
        overlay["ignore_value"] = ignore_value
    path = Path(str(output))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(overlay, indent=4, ensure_ascii=False), encoding="utf-8")
    print("\n".join(reasons))
    data = datalist.folder
    words = [str(path), "--dataset_dir", str(data), "--output_dir", f"outputs/{data.resolve().name}"]
    print(f"Next: {program()} train {'cpu ' if device == 'cpu' else ''}{shlex.join(words)}")


def resources(device: str | None, memory_gb: float | None) -> tuple[str, float]:
    """The device, "cpu" or "gpu", and the bytes to plan for.

    Raises:
        DataError: when an argument is out of range, or the memory of a GPU that is not here is not given.
    """
    if device is None:
        device = "gpu" if torch.cuda.is_available() else "cpu"
    if device not in DEVICES:
        raise DataError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}.")
    if memory_gb is None:
        if device == "gpu":
            if not torch.cuda.is_available():
                raise DataError("there is no GPU here to ask for its memory: give --memory_gb.")
            return device, float(torch.cuda.get_device_properties(0).total_memory)
        total = total_memory()
        return device, UNKNOWN_MEMORY if total is None else total / 2
    if isinstance(memory_gb, bool) or not isinstance(memory_gb, (int, float)) or memory_gb <= 0:
        raise DataError(f"memory_gb is {memory_gb!r}; it must be a positive number.")
    return device, memory_gb * 1e9


def plan(
    cases: Sequence[Fingerprint],
    header: dict[str, Any],
    *,
    device: str,
    memory: float,
    spacing: Sequence[float] | None = None,
    modality: str | None = None,
    regions: Sequence[Sequence[int]] | None = None,
    max_iterations: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The ids of the overlay, and the reasons, one line each.

    Args:
        cases: the labeled and the unlabeled ones; only the former have a foreground.
        header: the content of dataset.json, for names of classes and channels.
        device: "cpu" or "gpu".
        memory: bytes.
        spacing: see :func:`make_plan`, as the others.
        modality: see there.
        regions: see there.
        max_iterations: see there.

    Raises:
        DataError: when the label values are not 1 ... n, or the channels differ.
    """
    overlay: dict[str, Any] = {}
    reasons = []

    def choose(name: str, value: Any, reason: str) -> None:
        overlay[name] = value
        reasons.append(f"{name} {value}: {reason}.")

    channels = [number for number, _ in Counter(case.channels for case in cases).most_common()]
    if others := [f"{case.file} ({case.channels})" for case in cases if case.channels != channels[0]]:
        raise DataError(
            f"{len(others)} of {len(cases)} cases have another number of channels than most, {channels[0]}: "
            f"{shortened(others)}. Save one volume of each 4D file, or take the case out of dataset.json."
        )
    num_classes = len(regions) if regions else count_classes(cases)
    names, sides = None, None
    if not regions:
        names, sides = choices.choose_names(cases, class_names(header, num_classes), num_classes)
    overlay.update({"in_channels": channels[0], "class_names": names, "regions": regions})
    choose("num_classes", num_classes, "label values of the labeled cases")
    if values := declared_values(header, num_classes) if not regions else None:
        choose("label_values", values, "the classes' values in the original labels, for masks of new images")
    if spacing is None:
        spacing, reason = choices.choose_spacing(cases)
    else:
        try:
            spacing, reason = [float(value) for value in spacing], "as given"
        except TypeError:
            spacing = []
        if len(spacing) != 3 or min(spacing) <= 0:
            raise DataError('--spacing must be three positive numbers in mm, such as "[1,1,1]".')
    choose("spacing", spacing, reason)
    if modality is None:
        modality, reason = choices.guess_modality(cases, declared_modalities(header))
        reasons.append(f"modality {modality.upper()}: {reason}.")
    window, overlay["normalize_nonzero"], reason = choices.choose_intensity(cases, modality)
    choose("intensity_window", window, reason)
    volume, target, whole = patches.sizes_of(cases, spacing)
    network, reason = patches.choose_network(
        volume, target, memory=memory, device=device, in_channels=channels[0], num_classes=num_classes, whole=whole
    )
    patch = network.patch_size
    edges = np.median([case.spacing for case in cases], axis=0) if spacing is None else np.array(spacing)
    choose("patch_size", patch, f"{reason}; {patches.say_whether_whole(network, whole, edges)}")
    choose("stride", [n // 2 for n in patch], "half the patch, so that every voxel is seen eight times")
    choose("foreground_crops", *choices.choose_foreground_crops(volume, patch))
    if augmentation := choices.choose_augmentation(cases, spacing, sides):
        overlay["augmentation"], reason = augmentation
        reasons.append(f"augmentation: {reason}.")
    overlay["base_filters"] = network.base_filters
    overlay["labeled_batch_size"], overlay["unlabeled_batch_size"] = network.batch
    reasons.append(
        f"base_filters {network.base_filters}, batch {network.batch[0]} + {network.batch[1]}: predicted peak "
        f"{network.memory / 1e9:.1f} GB of {memory / 1e9:.1f} GB ({device.upper()})."
    )
    if dropout := choices.choose_dropout(network.base_filters):
        choose("dropout", *dropout)
    # Volumes lie in the machine's memory, which a training on a CPU takes its own from.
    left = memory - network.memory if device == "cpu" else patches.USABLE_MEMORY * (total_memory() or UNKNOWN_MEMORY)
    cache_rate, reason = choices.choose_cache_rate(cases, spacing, left)
    if cache_rate < 1:
        choose("cache_rate", cache_rate, reason)
    else:
        reasons.append(f"cache: {reason}.")
    reasons.append(hours_line(network, channels[0], num_classes, max_iterations or DEFAULT_ITERATIONS, device=device))
    return {**overlay, **({"max_iterations": max_iterations} if max_iterations else {})}, reasons


def count_classes(cases: Sequence[Fingerprint]) -> int:
    """The largest label value.

    Raises:
        DataError: when there is none but 0, or one below it does not occur.
    """
    values = sorted({value for case in cases for value in case.label_values} - {0})
    if not values:
        raise DataError("the labels of all labeled cases are empty: a plan needs at least one with foreground.")
    if values != list(range(1, len(values) + 1)):
        raise DataError(
            f"the labeled cases have the label values {values}; classes are 1, 2, ... without a gap: renumber them "
            "with --label_map of python -m scripts prepare, or give --regions, or --ignore_value for a value of what "
            "nobody annotated."
        )
    return len(values)


def hours_line(
    network: patches.NetworkChoice, in_channels: int, num_classes: int, iterations: int, *, device: str
) -> str:
    """The predicted hours, where the device is here to be timed."""
    if device == "gpu" and not torch.cuda.is_available():
        return f"hours: not predicted, since there is no GPU here to time; {iterations} iterations."
    seconds = seconds_per_iteration(
        patch_size=network.patch_size,
        labeled=network.batch[0],
        unlabeled=network.batch[1],
        base_filters=network.base_filters,
        in_channels=in_channels,
        num_classes=num_classes,
        device="cuda" if device == "gpu" else "cpu",
    )
    hours = choices.at_least_a_tenth(seconds * iterations / 3600)
    text = f"hours: {hours} for {iterations} iterations at {seconds:.2f} s, timed here"
    if device == "cpu" and seconds * iterations > 24 * 3600:
        text += f"; --max_iterations {int(12 * 3600 / seconds / 100) * 100 or 100} would take half a day"
    return text + "."


if __name__ == "__main__":
    run_command(make_plan)
