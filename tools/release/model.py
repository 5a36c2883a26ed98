"""Model: makes a finished run the bundle's own: weights, settings, card with pictures, metadata and hashes.

python -m tools.release.model --run_dir outputs/la --dataset_dir /data/left_atrium
"""

import io
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser

from scripts.data import DataError
from scripts.errors import UserError
from scripts.files import replacing, sha256, write_text
from scripts.pictures.panels import png
from scripts.workflow import run_workflow
from tools.command_line import run_command
from tools.reports.cases import surfaces_figure
from tools.reports.distribution import distribution_figure
from tools.reports.results import EvaluationResults
from tools.tables import markdown_table

from .bundle import LARGE_FILES, ROOT, WEIGHTS, as_json, describe_network, large_files
from .card import FAILURES, arguments_of_run, commands, fill, performance, training_rows

CARD = "docs/README.md"
PICTURES = {
    "docs/figures/model_failures.png": "surfaces of reference and prediction: the worst cases, and the median one",
    "docs/figures/model_distribution.png": "every metric of every report case",
}
# The masks of the weights as they are shipped are those of the evaluation, but for voxels that rounding tips over.
AGREEMENT = 0.99


def half_precision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict with its floating-point values in float16, integers as they are.

    Raises:
        UserError: when a value is not finite, or leaves the range of float16 (65504).
    """
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    broken = [name for name, value in half.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{', '.join(broken[:3])} ({len(broken)} in all) is not finite, or beyond 65504, in half precision: train "
            "with another normalization, or look at the training log."
        )
    return half


def read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {remedy}") from None


def settings_of_run(config: dict[str, Any], dataset_dir: str | Path) -> dict[str, Any]:
    """What the card says about a training, and how many cases its lists have.

    These are the ids of train.json that the card names, evaluated, and ``cases``, the number of cases by list. They are
    from ``config``, that of run.json, merged and unevaluated; the data set now lies in ``dataset_dir``.
    """
    parser = ConfigParser({**config, "dataset_dir": str(dataset_dir)})
    names = ("seed", "num_labeled", "spacing", "patch_size", "base_filters", "normalization", "dropout")
    of_training = ("learning_rate", "labeled_batch_size", "unlabeled_batch_size")
    settings = {name: parser.get_parsed_content(name) for name in (*names, *of_training)}
    for name, key in {"objective": "objective", "network": "network_def", "optimizer": "optimizer"}.items():
        settings[name] = config[key]["_target_"].rpartition(".")[-1]
    datalist = parser.get_parsed_content("datalist")
    unlabeled = datalist.unlabeled(settings["num_labeled"]) if settings["unlabeled_batch_size"] else []
    settings["cases"] = {
        "labeled": settings["num_labeled"],
        "unlabeled": len(unlabeled),
        "validation": len(datalist.validation),
        "report": len(datalist.test),
    }
    return settings


def masks_by_inference(
    inference: dict[str, Any], weights: bytes, images: Mapping[str, Any], root: Path
) -> dict[str, np.ndarray]:
    """Segments images as ``run inference`` does, with the config and weights that are about to be shipped.

    Args:
        inference: content of inference.json.
        weights: content of model.pt.
        images: path of the image, or paths of its channels, by case.
        root: of the bundle.

    Returns:
        Mask by case, as in its file.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.pt").write_bytes(weights)
        (Path(folder) / "inference.json").write_bytes(as_json(inference))
        changes: dict[str, Any] = {
            "bundle_root": str(root),
            "ckpt_path": f"{folder}/model.pt",
            "output_dir": f"{folder}/masks",
            "dataset#data": [{"image": image} for image in images.values()],
        }
        config = {"run_id": "inference", "config_file": f"{folder}/inference.json", "logging_file": False}
        run_workflow({**config, **changes})
        return {case: mask_of(Path(folder) / "masks", case) for case in images}


def mask_of(folder: Path, case: str) -> np.ndarray:
    """The mask of a case as in its file."""
    image = nibabel.load(folder / f"{case}_seg.nii.gz")
    assert isinstance(image, nibabel.Nifti1Image)
    return np.asarray(image.dataobj)


def check_agreement(masks: Mapping[str, np.ndarray], results: EvaluationResults) -> None:
    """Compares the masks of the shipped weights with those that the evaluation wrote.

    Raises:
        UserError: when the overlap of a case is below ``AGREEMENT``: the evaluation was of other weights or settings.
    """
    for case, mask in masks.items():
        evaluated = mask_of(results.output_dir, case)
        dice = 1.0
        if mask.any() or evaluated.any():
            both = (mask > 0) & (mask == evaluated)
            dice = 2 * np.count_nonzero(both) / (np.count_nonzero(mask) + np.count_nonzero(evaluated))
        if dice < AGREEMENT:
            raise UserError(
                f"the weights give another mask of {case} than {results.output_dir} has (Dice {dice:.3f} between them, "
                f"at least {AGREEMENT} accepted): evaluate the final weights of this run again, with the same "
                "largest_component, and check that configs/inference.json has the network_def of the run's model.json."
            )


def eval_metrics(results: EvaluationResults) -> dict[str, float]:
    """What metadata.json says of the results: means over the cases and classes, of the finite values."""
    found: dict[str, float] = {}
    for metric in ("dice", "hd95_mm", "asd_mm"):
        values = [value for name in results.classes for value in results.values(name, metric)]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            found[f"mean_{metric}"] = round(sum(finite) / len(finite), 4)
    return {**found, "cases": len(results.cases)}


def pictures_of(results: EvaluationResults, cases: Iterable[str]) -> dict[str, bytes]:
    """The card's pictures, by path: surfaces of some cases, and the distribution of the metrics.

    They show no slice of a scan: the terms of the data may not allow to pass one on.
    """
    rows = {f"{case}, Dice {results.dice(case):.3f}": results.volumes(case) for case in cases}
    values = {metric: {name: results.values(name, metric) for name in results.classes} for metric in results.metrics}
    figures = (surfaces_figure(rows, results.classes), distribution_figure(values))
    return dict(zip(PICTURES, map(png, figures)))


def release_model(
    run_dir: str | Path,
    dataset_dir: str | Path,
    *,
    ckpt_dir: str | Path | None = None,
    largest_component: bool | None = None,
    root: str | Path = ROOT,
) -> list[Path]:
    """Writes the files of the bundle that say what its model is, from those of a run.

    These are models/model.pt (half precision), models/model.json, the settings in configs/inference.json, channels,
    classes and ``eval_metrics`` in configs/metadata.json, large_files.yml, and in the model card the parts between
    markers, with their pictures. Nothing is written before everything is known to fit.

    Args:
        run_dir: output_dir of a training with configs/record.json that was trained to its end, and of the evaluation
            of its final weights.
        dataset_dir: of the data set that it was evaluated on.
        ckpt_dir: of the training; <run_dir>/models by default.
        largest_component: whether inference with this model keeps the largest part of every class alone, as the
            evaluation must have done, too; None leaves it as the training had it.
        root: of the bundle.

    Returns:
        The paths written.

    Raises:
        DataError: when a file of the run is missing.
        UserError: when the weights do not survive half precision, the evaluation is not of these weights, or a
            models/model.ts of other weights is there.
    """
    run_dir, root = Path(run_dir), Path(root)
    ckpt_dir = Path(ckpt_dir) if ckpt_dir else run_dir / "models"
    record = read_json(run_dir / "record.json", "add configs/record.json to the config files of the training.")
    run = read_json(run_dir / "run.json", "give the output_dir of `run training`.")
    settings = read_json(ckpt_dir / "model.json", "give the ckpt_dir of the training as --ckpt_dir.")
    settings.pop("run_digest", None)  # says nothing where the run is not
    if largest_component is not None:
        settings["largest_component"] = largest_component
    ignore_value = run["config"].get("ignore_value")
    results = EvaluationResults(run_dir, dataset_dir, regions=settings["regions"], ignore_value=ignore_value)

    if (root / WEIGHTS[1]).is_file():
        raise UserError(
            f"{root / WEIGHTS[1]} holds the weights before these: delete it, and export it again afterwards."
        )

    buffer = io.BytesIO()  # torch writes the name of a file into it; this makes it the same wherever it goes
    torch.save(half_precision(torch.load(ckpt_dir / "model.pt", map_location="cpu", weights_only=True)), buffer)
    files: dict[str, bytes] = {"models/model.pt": buffer.getvalue(), "models/model.json": as_json(settings)}
    # inference.json has a network_def of its own, equal to train.json's, which clients read.
    inference = read_json(root / "configs" / "inference.json", "give the folder of the bundle as --root.")
    inference |= {name: value for name, value in settings.items() if name != "network_def"}
    order = [case for case in results.ordered() if not math.isnan(results.dice(case))]
    failures, median = order[:FAILURES], results.chosen().get("median", order[0])
    shown_cases = list(dict.fromkeys([*failures, median]))
    images = {case: results.paths(case)["image"] for case in dict.fromkeys([order[0], median])}
    check_agreement(masks_by_inference(inference, files["models/model.pt"], images, root), results)

    metadata = read_json(root / "configs" / "metadata.json", "give the folder of the bundle as --root.")
    describe_network(metadata, settings)
    metadata["eval_metrics"] = eval_metrics(results)
    files |= {"configs/inference.json": as_json(inference), "configs/metadata.json": as_json(metadata)}
    files |= pictures_of(results, shown_cases)
    training = markdown_table(
        ["what", "value"], training_rows(settings_of_run(run["config"], dataset_dir), record, run["starts"])
    )
    pictures = {path.removeprefix("docs/"): words for path, words in PICTURES.items()}
    parts = {
        "training": f"{training}\n\n{commands(arguments_of_run(run_dir, run['starts']))}",
        "performance": performance(results, {case: results.volumes(case) for case in failures}, pictures),
    }
    files[CARD] = fill((root / CARD).read_text(encoding="utf-8"), parts).encode()

    for name, content in files.items():
        with replacing(root / name) as temporary:
            temporary.write_bytes(content)
    present = [name for name in WEIGHTS if (root / name).is_file()]
    write_text(root / LARGE_FILES, large_files(root, present, None))
    return [root / name for name in (*files, LARGE_FILES)]


def main(run_dir: str, dataset_dir: str, ckpt_dir: str | None = None, *, largest_component: bool | None = None) -> None:
    """Makes a finished run the bundle's own model and prints the files written; see :func:`release_model`."""
    written = release_model(run_dir, dataset_dir, ckpt_dir=ckpt_dir, largest_component=largest_component)
    print("\n".join(str(path) for path in written))
    print(f"sha256 of models/model.pt: {sha256(ROOT / 'models' / 'model.pt')}")


if __name__ == "__main__":
    run_command(main)
