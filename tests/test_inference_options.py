"""Tests of the options of inference.json, on real files: each does what it says, and none changes the default."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, SHAPES, blob, las, oblique, save
from PIL import Image
from scipy import ndimage

from scripts.data import DataError, LabelCoding
from scripts.errors import users_error
from scripts.inference import Predictor, SavePreviewd, Segmenter
from scripts.inference.predictor import HeadsError
from scripts.networks import DualTaskVNet
from scripts.setting_checks import UnknownIdError

INFERENCE = "configs/inference.json"
NAMES = ("first", "second")


def network(seed: int) -> DualTaskVNet:
    """An untrained network whose masks are scattered, whose decoders differ and whose heads disagree in places."""
    torch.manual_seed(seed)
    network = DualTaskVNet(base_filters=2, normalization="group").eval()
    with torch.no_grad():
        heads = network.forward_heads(torch.randn(1, 1, 16, 16, 16))
        for decoder in ("phi", "psi"):  # half of the voxels become foreground, for every head its own half
            network.get_submodule(f"segmentation_head_{decoder}").bias -= heads[f"logits_{decoder}"].median()
            network.get_submodule(f"distance_head_{decoder}").bias -= heads[f"distance_{decoder}"].median().atanh()
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two volumes and the weights of two folds."""
    folder = tmp_path_factory.mktemp("options")
    for number, (name, affine) in enumerate(zip(NAMES, (las((1.0, 1.2, 2.0)), oblique((1.0, 1.2, 2.0))))):
        save(blob(SHAPES[number], seed=number)[0], affine, folder / "new" / f"{name}.nii.gz")
    for fold in (0, 1):
        torch.save(network(fold).state_dict(), folder / f"fold{fold}.pt")
    return folder


@pytest.fixture
def infer(workflow, folder, tmp_path) -> Callable[..., Path]:
    """Runs inference in this process with the options given, into the folder that it returns."""

    def run(output: str = "masks", **options: object) -> Path:
        overrides = {
            "input_dir": str(folder / "new"),
            "output_dir": str(tmp_path / output),
            "ckpt_path": str(folder / "fold0.pt"),
            "base_filters": 2,
            "spacing": None,
            "patch_size": [16, 16, 16],
            "stride": [8, 8, 8],
            "save_probability": True,
            "device": "$torch.device('cpu')",
            **options,
        }
        bundle = workflow(INFERENCE, workflow_type="inference", **overrides)
        bundle.initialize()
        bundle.run()
        bundle.finalize()
        return tmp_path / output

    return run


def voxels(folder: Path, name: str) -> np.ndarray:
    return np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_by_default_there_is_nothing_but_what_was_asked_for_and_the_record(infer):
    masks = infer()
    expected = [f"{name}_{kind}.nii.gz" for name in NAMES for kind in ("probability", "seg")]
    assert files(masks) == sorted([*expected, "inference_settings.json", "classes.ctbl"])
    assert (masks / "classes.ctbl").read_text().splitlines()[2] == "1 left_atrium 230 159 0 255"


def one_window(folder: Path) -> tuple[str, torch.Tensor]:
    """A folder with a volume as large as the patch, and (1, 1, H, W, D) what the network gets to see of it."""
    image = blob((16, 16, 16), seed=5)[0].astype(np.float32)
    save(image, np.eye(4), folder / "one" / "window.nii.gz")
    return str(folder / "one"), torch.from_numpy((image - image.mean()) / image.std())[None, None]


def test_flips_give_the_average_over_the_mirrored_volumes(infer, folder):
    input_dir, x = one_window(folder)
    masks = infer(input_dir=input_dir, flip_axes=[0, 2])
    with torch.no_grad():
        net = network(0)
        predicted = [net(x.flip(axes)).flip(axes) if axes else net(x) for axes in ([], [2], [4], [2, 4])]
    assert (predicted[0] - predicted[3]).abs().max() > 1e-3
    np.testing.assert_allclose(voxels(masks, "window_probability"), sum(predicted)[0, 0] / 4, atol=1e-5)


def test_ensemble_is_the_mean_of_the_folds(infer, folder):
    folds = [str(folder / f"fold{fold}.pt") for fold in (0, 1)]
    first, second = (voxels(infer(Path(path).stem, ckpt_path=path), "second_probability") for path in folds)
    together = infer("ensemble", ckpt_path=folds)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(voxels(together, "second_probability"), (first + second) / 2, atol=1e-6)


def test_the_mean_of_the_decoders_is_what_both_give(infer):
    both, phi, psi = (voxels(infer(d, decoders=d), "first_probability") for d in ("both", "phi", "psi"))
    assert np.abs(phi - psi).max() > 1e-3
    np.testing.assert_allclose((phi + psi) / 2, both, atol=1e-6)


@pytest.mark.parametrize("decoders", ["both", "psi"])
@pytest.mark.parametrize("heads", ["distance", "all"])
def test_distance_heads_become_probabilities_and_their_mean_with_the_others_is_taken(infer, folder, heads, decoders):
    input_dir, x = one_window(folder)
    masks = infer(input_dir=input_dir, heads=heads, decoders=decoders)
    with torch.no_grad():
        of_network = network(0).forward_heads(x)
    names = ("phi", "psi") if decoders == "both" else (decoders,)
    parts = [torch.sigmoid(-1500 * of_network[f"distance_{d}"]) for d in names]
    if heads == "all":
        parts += [torch.sigmoid(of_network[f"logits_{d}"]) for d in names]
    expected = (sum(parts) / len(parts))[0, 0].numpy()
    assert np.mean(np.abs(voxels(masks, "window_probability") - expected) > 1e-3) < 1e-3  # the steep sigmoid at 0


def test_a_threshold_makes_masks_of_what_lies_above_it(infer):
    masks = infer(threshold=0.52, largest_component=False)
    for name in NAMES:
        probability, mask = voxels(masks, f"{name}_probability"), voxels(masks, f"{name}_seg")
        assert np.array_equal(mask == 1, probability > 0.52) and 0 < mask.mean() < (probability > 0.5).mean()


@pytest.mark.parametrize("value, dtype", [(3, np.uint8), (420, np.uint16)])
def test_masks_have_the_label_values_that_are_asked_for(infer, value, dtype):
    plain, masks = infer("plain"), infer(label_values=[value], save_volumes=True)
    for name in NAMES:
        mask = voxels(masks, f"{name}_seg")
        assert mask.dtype == dtype
        assert np.array_equal(mask, voxels(plain, f"{name}_seg").astype(dtype) * value) and mask.any()
    with (masks / "volumes.csv").open(newline="") as file:
        assert all(int(row["voxels"]) > 0 for row in csv.DictReader(file))


def test_preview_draws_every_case_and_lists_all_on_a_page(infer, monkeypatch):
    masks = infer(preview=True, class_names=["<b>atrium"])
    pictures = [Image.open(masks / f"{name}_preview.png").convert("RGB") for name in NAMES]
    for picture in pictures:
        pixels = np.asarray(picture).astype(int)
        assert (np.abs(pixels - (0xE6, 0x9F, 0x00)).max(axis=-1) < 15).sum() > 50  # contours in the colour of class 1
    page = (masks / "preview.html").read_text(encoding="utf-8")
    assert [f'src="{name}_preview.png"' in page for name in NAMES] == [True, True]
    assert "<b>atrium" not in page and "&lt;b&gt;atrium" in page and "2 masks" in page


def test_preview_without_matplotlib_is_refused_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scripts.pictures.panels", None)
    monkeypatch.delattr("scripts.pictures.panels", raising=False)
    with pytest.raises(DataError, match="preview needs matplotlib"):
        SavePreviewd("pred", LabelCoding(1), tmp_path)


def segmenter(folder: Path, **options: object) -> Segmenter:
    given = {"ckpt_path": str(folder / "fold0.pt"), "base_filters": 2, "spacing": [1.5, 1.5, 1.5]}
    given |= {"patch_size": [16, 16, 16], "stride": [8, 8, 8], "device": "cpu", **options}
    return Segmenter([ROOT / INFERENCE], **given)


def test_a_call_on_an_array_gives_the_mask_of_the_file(infer, folder):
    masks = infer(spacing=[1.5, 1.5, 1.5], label_values=[9])
    segment = segmenter(folder, label_values=[9])
    for name in NAMES:
        image = nibabel.load(folder / "new" / f"{name}.nii.gz")
        mask = segment(image.get_fdata(), image.affine)
        assert mask.dtype == np.uint8 and mask.any()
        assert np.array_equal(mask, voxels(masks, f"{name}_seg"))


def test_a_call_on_an_array_that_cannot_be_right_is_refused(folder):
    segment = segmenter(folder)
    for image in (np.zeros((20, 20, 20)), np.full((20, 20, 20), np.nan), np.zeros((20, 20)), np.zeros((20, 20, 20, 2))):
        with pytest.raises(DataError, match="the image"):
            segment(image, np.eye(4))


def test_a_call_with_an_option_that_no_id_has_is_refused(folder):
    for options in ({"treshold": 0.4}, {"overrides": {"threshold": 0.4}}, {"inferer#overlapp": 0.5}):
        with pytest.raises(UnknownIdError, match=next(iter(options))):
            segmenter(folder, **options)


def test_heads_that_the_network_lacks_end_the_run_and_blame_no_case(infer, tmp_path):
    weights = tmp_path / "single.pt"
    torch.save(DualTaskVNet(base_filters=2, tasks=["segmentation"], normalization="group").state_dict(), weights)
    with pytest.raises(RuntimeError) as caught:  # MONAI's, of the expression that ran
        infer(ckpt_path=str(weights), heads="all", **{"network_def#tasks": ["segmentation"]})
    assert isinstance(users_error(caught.value), HeadsError)
    assert not list(tmp_path.rglob("failures.csv"))


def test_uncertainty_is_one_where_the_four_heads_do_not_agree(infer, folder):
    input_dir, x = one_window(folder)
    masks = infer(input_dir=input_dir, save_uncertainty="true", save_distance=True)
    with torch.no_grad():
        heads = network(0).forward_heads(x)
    votes = sum((heads[f"logits_{d}"] > 0).int() + (heads[f"distance_{d}"] < 0).int() for d in ("phi", "psi"))[0, 0]
    uncertainty = voxels(masks, "window_uncertainty")
    assert uncertainty.dtype == np.float32 and 0 < uncertainty.mean() < 1
    np.testing.assert_array_equal(uncertainty, ((votes > 0) & (votes < 4)).float().numpy())
    distance = (heads["distance_phi"] + heads["distance_psi"])[0, 0] / 2
    np.testing.assert_allclose(voxels(masks, "window_distance"), distance, atol=1e-5)


def test_uncertainty_lies_in_the_geometry_of_the_volume_and_leaves_the_mask_alone(infer):
    masks, plain = infer(save_uncertainty=True), infer("plain")
    for name in NAMES:
        uncertainty, mask = (nibabel.load(masks / f"{name}_{kind}.nii.gz") for kind in ("uncertainty", "seg"))
        np.testing.assert_allclose(uncertainty.affine, mask.affine)
        assert uncertainty.shape == mask.shape
        assert 0 <= uncertainty.get_fdata().min() < uncertainty.get_fdata().max() <= 1
        assert np.array_equal(voxels(masks, f"{name}_seg"), voxels(plain, f"{name}_seg"))


def test_largest_component_is_that_of_the_mask_without_the_option(infer):
    # The threshold's noise makes many parts.
    scattered = {"network_def": {"_target_": "torch.nn.Sigmoid"}, "handlers#0#_disabled_": True}
    plain, one = infer("plain", largest_component=False, **scattered), infer(
        "one", largest_component="true", **scattered
    )
    for name in NAMES:
        labels, count = ndimage.label(voxels(plain, f"{name}_seg"), np.ones((3, 3, 3)))
        sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
        assert count > 1
        assert np.array_equal(voxels(one, f"{name}_seg") == 1, labels == sizes.argmax() + 1)


def test_volumes_are_those_of_the_masks_in_millilitres(infer):
    masks = infer(save_volumes="true")
    with (masks / "volumes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [(name, "left atrium") for name in NAMES]
    for row in rows:
        count = int((voxels(masks, f"{row['case']}_seg") == 1).sum())
        assert int(row["voxels"]) == count > 0
        assert float(row["millilitres"]) == pytest.approx(count * 1.0 * 1.2 * 2.0 / 1000, rel=1e-5)


def test_buffered_stitching_on_the_cpu_gives_the_same_masks(infer):
    plain = infer("plain")
    buffered = infer("buffered", **{"inferer#buffer_steps": 1, "inferer#cpu_thresh": 1, "inferer#device": "cpu"})
    for name in NAMES:
        difference = voxels(plain, f"{name}_probability") - voxels(buffered, f"{name}_probability")
        assert np.abs(difference).max() < 1e-6


def test_second_run_segments_only_what_is_missing_and_completes_the_table(infer, monkeypatch, caplog):
    masks = infer(save_volumes=True)
    before = {name: (masks / name).read_bytes() for name in files(masks)}
    (masks / "second_seg.nii.gz").unlink()
    seen = []
    forward = Predictor.forward
    monkeypatch.setattr(Predictor, "forward", lambda self, x: seen.append(x) or forward(self, x))
    with caplog.at_level(logging.INFO):
        infer(save_volumes=True)
    assert len(seen) > 0 and "1 of 2 cases are finished" in caplog.text
    assert files(masks) == sorted(before)
    assert (masks / "volumes.csv").read_bytes() == before["volumes.csv"]
    assert voxels(masks, "second_seg").sum() > 0
    windows = len(seen)
    infer(save_volumes=True)
    assert len(seen) == windows  # nothing is left
    infer(save_volumes=True, overwrite=True)
    assert len(seen) > 2 * windows - 1


def test_second_run_with_other_settings_is_refused(infer):
    infer()
    with pytest.raises(RuntimeError) as caught:
        infer(flip_axes=[0])
    messages = []
    error: BaseException | None = caught.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    assert any("flip_axes was [] and is [0]" in message for message in messages)


# --- the same in evaluation ---


@pytest.fixture
def evaluate(workflow, folder, tmp_path) -> Callable[..., tuple[Path, list[dict[str, str]]]]:
    """Runs evaluation with the options given on the two volumes; returns its folder and the rows of metrics.csv."""
    lists = {"training": [], "test": []}
    for number, name in enumerate(NAMES):
        image = nibabel.load(folder / "new" / f"{name}.nii.gz")
        save(blob(SHAPES[number], seed=number)[1], image.affine, folder / "labels" / f"{name}.nii.gz")
        lists["test"].append({"image": f"new/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps(lists))

    def run(output: str, **options: object) -> tuple[Path, list[dict[str, str]]]:
        overrides = {
            "dataset_dir": str(folder),
            "output_dir": str(tmp_path / output),
            "ckpt_path": str(folder / "fold0.pt"),
            "class_names": ["left atrium"],
            "base_filters": 2,
            "patch_size": [16, 16, 16],
            "stride": [8, 8, 8],
            "device": "$torch.device('cpu')",
            **options,
        }
        bundle = workflow("configs/train.json", "configs/evaluate.json", **overrides)
        bundle.initialize()
        bundle.run()
        with (tmp_path / output / "metrics.csv").open(newline="") as file:
            return tmp_path / output, list(csv.DictReader(file))

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"largest_component": "true"},
        {"decoders": "psi"},
        {"flip_axes": [0, 2]},
        {"heads": "all"},
        {"threshold": 0.55},
        {"ckpt_path": 2, "save_uncertainty": True, "save_volumes": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_evaluation_measures_the_masks_that_inference_writes_with_the_same_options(evaluate, infer, folder, options):
    if "ckpt_path" in options:
        options = {**options, "ckpt_path": [str(folder / f"fold{fold}.pt") for fold in (0, 1)]}
    plain, before = evaluate("plain")
    measured, rows = evaluate("measured", **options)
    masks = infer("inferred", **{"largest_component": False, **options})
    assert rows != before
    for row, name in zip(rows, NAMES, strict=True):
        mask = voxels(measured, f"{name}_seg")
        assert np.array_equal(mask, voxels(masks, f"{name}_seg"))
        label = np.asarray(nibabel.load(folder / "labels" / f"{name}.nii.gz").dataobj)
        assert float(row["dice"]) == pytest.approx(2 * (mask & label).sum() / (mask.sum() + label.sum()))
    if "save_volumes" in options:
        assert (measured / "volumes.csv").read_text() == (masks / "volumes.csv").read_text()
        assert np.array_equal(voxels(measured, "first_uncertainty"), voxels(masks, "first_uncertainty"))
