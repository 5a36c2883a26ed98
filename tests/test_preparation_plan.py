"""Tests of tools/preparation/{fingerprint,choices,patches,memory,plan}.py and of the crops that a plan asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, blob, las, oblique, save, small, write_dataset
from monai.bundle import ConfigParser

from benchmarks.training_memory import CONFIGURATIONS, added_bytes
from scripts.data import DataError, crop_stream
from scripts.networks import DualTaskVNet
from tools.preparation import choices, patches
from tools.preparation.declared import class_names
from tools.preparation.fingerprint import Fingerprint, read_fingerprint
from tools.preparation.memory import BASE_BYTES, stored_maps, training_bytes
from tools.preparation.plan import count_classes, make_plan, plan, resources

TRAIN = str(ROOT / "configs" / "train.json")


def fingerprint(**changes: object) -> Fingerprint:
    """A labeled MR case of 200 x 180 x 90 voxels at 1 x 1 x 2 mm with an object of 60 x 50 x 40 mm."""
    values = {
        "shape": np.array([200, 180, 90]),
        "spacing": np.array([1.0, 1.0, 2.0]),
        "channels": 1,
        "low": 0.0,
        "high": 900.0,
        "zeros": 0.1,
        "extent": np.array([60.0, 50.0, 40.0]),
        "label_values": (0, 1),
        "foreground": np.linspace(300, 400, 1001),
    }
    return Fingerprint(**{**values, **changes})


@pytest.fixture
def no_timing(monkeypatch):
    """The prediction of hours without running any iteration."""
    monkeypatch.setattr("tools.preparation.plan.seconds_per_iteration", lambda **_: 2.0)


# --- fingerprints ---


@pytest.mark.parametrize("affine", [las((1.0, 1.2, 2.0)), las((1.0, 1.2, 2.0))[[2, 0, 1, 3]], oblique((1.0, 1.2, 2.0))])
def test_fingerprint_is_in_ras_order_and_millimetres(tmp_path, affine):
    label = np.zeros((20, 22, 24), np.uint8)
    label[3:13, 5:9, 1:7] = 1  # 10 x 4 x 6 voxels
    image = np.full(label.shape, 7, np.int16)
    image[label > 0] = 50
    case = {"image": save(image, affine, tmp_path / "i.nii.gz"), "label": save(label, affine, tmp_path / "l.nii.gz")}
    found = read_fingerprint(case)
    order = [2, 0, 1] if affine[0, 2] != 0 else [0, 1, 2]  # array axis of each patient axis
    assert found.shape.tolist() == np.array([20, 22, 24])[order].tolist()
    np.testing.assert_allclose(found.spacing, np.array([1.0, 1.2, 2.0])[order])
    np.testing.assert_allclose(found.extent, np.array([10, 4.8, 12])[order])
    assert found.label_values == (0, 1) and set(found.foreground) == {50.0} and found.zeros == 0


def test_case_without_a_label_key_has_no_foreground(tmp_path):
    image = [save(blob((9, 8, 7), seed=n)[0], np.eye(4), tmp_path / f"{n}.nii.gz") for n in range(2)]
    found = read_fingerprint({"image": image})
    assert (found.channels, found.extent, found.label_values, len(found.foreground)) == (2, None, (), 0)


# --- single choices ---


@pytest.mark.parametrize("spacing", [1, [1, 1], [1, 1, 0]])
def test_a_spacing_that_is_not_three_positive_numbers_is_refused(tiny, tmp_path, spacing):
    with pytest.raises(DataError, match="--spacing must be three positive numbers in mm"):
        make_plan(dataset_dir=str(tiny), output=str(tmp_path / "plan.json"), spacing=spacing)


def test_equal_spacings_are_not_resampled_and_others_become_the_median():
    assert choices.choose_spacing([fingerprint()] * 3)[0] is None
    cases = [fingerprint(spacing=np.array([1.0, 1.0, z])) for z in (2.0, 2.5, 5.0)]
    spacing, reason = choices.choose_spacing(cases)
    assert spacing == [1.0, 1.0, 2.5] and "1 x 1 x 2 to 1 x 1 x 5 mm" in reason


@pytest.mark.parametrize(
    "low, declared, expected",
    [
        (-1000, [], "ct"),
        (0, [], "mr"),
        (-1.7, ["0"], "mr"),
        (0, ["CT"], "ct"),
        (-1000, ["MRI"], "mr"),
        (-1000, ["0", "1"], "ct"),
    ],
)
def test_modality_is_what_the_data_set_declares_or_else_whether_there_is_air_in_hu(low, declared, expected):
    assert choices.guess_modality([fingerprint(low=low)], declared)[0] == expected


def test_ct_is_clipped_to_the_labeled_foreground_and_skull_stripped_mr_scored_without_its_zeros():
    cases = [fingerprint(foreground=np.linspace(-50, 150, 2001)), fingerprint(foreground=np.empty(0), extent=None)]
    assert choices.choose_intensity(cases, "ct")[:2] == ([-50, 150], False)
    assert choices.choose_intensity([fingerprint(zeros=0.6)], "mr")[:2] == (None, True)
    assert choices.choose_intensity([fingerprint(zeros=0.1)], "mr")[:2] == (None, False)


def test_patch_starts_at_the_volume_and_is_shortened_where_it_exceeds_the_object_most():
    def patch(limit):
        return patches.largest_patch(
            np.array([100, 100, 30]), np.array([50, 100, 30]), fits=lambda p: np.prod(p) <= limit
        )

    assert patch(10**9) == [96, 96, 32]  # to the nearest multiples of 16
    assert patch(96 * 96 * 32 - 1) == [80, 96, 32]
    assert patch(64 * 96 * 32) == [64, 96, 32]
    assert patch(16**3) == [16, 16, 16] and patch(16**3 - 1) is None


def test_crops_are_drawn_to_the_foreground_only_where_a_patch_is_small_against_the_volume():
    assert choices.choose_foreground_crops(np.array([100, 100, 100]), [64, 64, 64])[0] == 0
    assert choices.choose_foreground_crops(np.array([200, 200, 200]), [64, 64, 64])[0] == 0.5


def test_more_memory_never_gives_a_smaller_patch_and_the_prediction_stays_below_it():
    volume, target = np.array([200, 180, 160]), np.array([120, 110, 100])
    voxels = 0
    for gigabytes in (6, 8, 12, 24, 48):
        chosen, _ = patches.choose_network(
            volume, target, memory=gigabytes * 1e9, device="gpu", in_channels=1, num_classes=1
        )
        assert chosen.memory <= gigabytes * 1e9
        size = np.prod(chosen.patch_size) * chosen.base_filters * sum(chosen.batch)
        assert size >= voxels
        voxels = size
    assert chosen.base_filters == 16 and chosen.batch == (2, 2)


def test_cpu_patch_is_limited_by_time_and_too_little_memory_is_refused_with_what_is_needed():
    volume = np.array([200, 180, 160])
    chosen, reason = patches.choose_network(volume, volume, memory=1e12, device="cpu", in_channels=1, num_classes=1)
    assert np.prod(chosen.patch_size) <= 64**3 and "on a CPU" in reason
    assert (chosen.base_filters, chosen.batch) == (8, (2, 2))
    with pytest.raises(DataError, match=r"memory_gb is 0.5 and the smallest training needs 0.\d"):
        patches.choose_network(volume, volume, memory=0.5e9, device="cpu", in_channels=1, num_classes=1)


@pytest.mark.parametrize(
    "volume, patch, reason",
    [
        ([48, 30, 16], [48, 32, 16], "the whole volume; "),
        ([54, 36, 18], [48, 32, 16], "the volume, 54 x 36 x 18 voxels, to the nearest multiples of 16; "),
        ([54, 36, 12.5], [48, 32, 16], "the volume, 54 x 36 x 12.5 voxels, to the nearest multiples of 16; "),
        ([96, 96, 96], [64, 64, 64], "at most 64 x 64 x 64 voxels on a CPU"),
    ],
)
def test_patch_is_called_the_whole_volume_only_where_it_holds_all_of_it(volume, patch, reason):
    volume = np.array(volume, float)
    chosen, text = patches.choose_network(volume, volume, memory=8e9, device="cpu", in_channels=1, num_classes=1)
    assert chosen.patch_size == patch and text.startswith(reason)
    covered = choices.choose_foreground_crops(volume, patch)[1]
    assert ("the whole volume" in text) == ("each covers 100%" in covered)


def test_a_patch_keeps_the_whole_object_before_its_proportions_and_the_network_is_chosen_for_it():
    volume, target, whole = np.array([96, 96, 96]), np.array([96, 48, 48]), np.array([60, 60, 40])
    # By the proportions axis 0 would stay long; the object needs axis 1.
    patch = patches.largest_patch(volume, target, fits=lambda p: np.prod(p) <= 64 * 64 * 48, whole=whole)
    assert patch == [64, 64, 48]
    # A volume of 22 voxels is nearest to 16, which would cut an object of 20.
    assert patches.largest_patch(
        np.array([46, 35, 22]), np.array([46, 35, 22]), fits=lambda _: True, whole=np.array([41, 30, 20])
    ) == [48, 32, 32]
    big = np.array([160, 160, 160])
    for memory, holds in ((24e9, True), (2.5e9, False)):
        chosen, _ = patches.choose_network(
            big, big, memory=memory, device="gpu", in_channels=1, num_classes=1, whole=np.array([90, 90, 90])
        )
        assert (min(chosen.patch_size) >= 90) == holds


def test_plan_says_whether_a_crop_holds_the_whole_object_and_at_which_spacing_it_would(no_timing):
    cases = [fingerprint(extent=np.array([n, 50.0, 40.0])) for n in (50.0, 60.0)]
    overlay, reasons = plan(cases, {}, device="cpu", memory=8e9)
    (line,) = [reason for reason in reasons if reason.startswith("patch_size")]
    assert "holds the whole object" in line and np.all(np.array(overlay["patch_size"]) >= [60, 50, 20])
    cases = [fingerprint(extent=np.array([n, 150.0, 150.0])) for n in (150.0, 160.0)]
    overlay, reasons = plan(cases, {}, device="cpu", memory=8e9)
    (line,) = [reason for reason in reasons if reason.startswith("patch_size")]
    coarser = json.loads(line.partition('--spacing "')[2].partition('"')[0])
    overlay, reasons = plan(cases, {}, device="cpu", memory=8e9, spacing=coarser)
    assert np.all(np.array(overlay["patch_size"]) * coarser >= [160, 150, 150])
    assert any("holds the whole object" in reason for reason in reasons)


@pytest.mark.parametrize(
    "device, memory, helps",
    [("cpu", 8e9, False), ("cpu", 1e12, False), ("cpu", 1.2e9, False), ("gpu", 4e9, True)],
)
def test_more_memory_is_advised_only_where_it_would_let_the_patch_hold_the_object(no_timing, device, memory, helps):
    cases = [fingerprint(extent=np.array([n, 150.0, 150.0])) for n in (150.0, 160.0)]
    _, reasons = plan(cases, {}, device=device, memory=memory)
    (line,) = [reason for reason in reasons if reason.startswith("patch_size")]
    assert "less than the whole object" in line and ("memory" in line.partition("less than")[2]) == helps


@pytest.mark.parametrize("device, filters, dropout", [("cpu", 8, 0.0), ("gpu", 16, None)])
def test_plan_drops_no_channels_of_eight_filters_and_leaves_the_default_with_sixteen(
    no_timing, device, filters, dropout
):
    overlay, reasons = plan([fingerprint()], {}, device=device, memory=24e9)
    assert (overlay["base_filters"], overlay.get("dropout")) == (filters, dropout)
    lines = [reason for reason in reasons if reason.startswith("dropout")]
    assert lines == (
        []
        if dropout is None
        else [
            "dropout 0: half of 8 filters are too few for a distance, and DBiSL would lose what it gains "
            "(docs/methods/dbisl.md)."
        ]
    )


@pytest.mark.parametrize(
    "own, spacing, reason",
    [
        ([3.0, 0.8, 0.8], None, "axis 0 of 3 mm and axis 1 of 0.8 mm"),  # sagittal slices
        ([0.8, 3.0, 0.8], None, "axis 0 of 0.8 mm and axis 1 of 3 mm"),  # coronal
        ([1.0, 1.0, 1.0], [1.0, 1.6, 1.0], "axis 0 of 1 mm and axis 1 of 1.6 mm"),
        ([0.8, 0.8, 5.0], None, None),  # axial
        ([1.0, 1.5, 1.0], None, None),
        ([3.0, 0.8, 0.8], [1.0, 1.0, 1.0], None),  # as the network sees it
    ],
)
def test_plan_has_no_quarter_turns_where_they_would_swap_thick_and_thin(no_timing, own, spacing, reason):
    overlay, reasons = plan([fingerprint(spacing=np.array(own))], {}, device="cpu", memory=8e9, spacing=spacing)
    lines = [line for line in reasons if line.startswith("augmentation")]
    if reason is None:
        assert "augmentation" not in overlay and lines == []
        return
    assert lines == [f"augmentation: flips without quarter turns, which would swap {reason}."]
    default = json.loads(Path(TRAIN).read_text())["augmentation"]
    assert overlay["augmentation"] == [part for part in default if part["_target_"] != "RandRotate90d"] != default


# --- memory ---


def test_stored_maps_are_those_that_autograd_keeps():
    network = DualTaskVNet(base_filters=8).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        heads = network(torch.randn(1, 1, 32, 32, 32))
    size = sum(size for pointer, size in kept.items() if pointer not in parameters)
    assert len(heads) == 4
    assert size / (4 * 8 * 32**3) == pytest.approx(stored_maps(), rel=0.04)  # the heads' maps come on top


@pytest.mark.long
@pytest.mark.parametrize("configuration", CONFIGURATIONS[:2])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_predicted_memory_is_the_measured_peak(configuration):
    predicted = training_bytes(**configuration, crops=4) - BASE_BYTES["cpu"]
    assert predicted == pytest.approx(added_bytes(configuration), rel=0.25)


# --- plans ---


def test_plan_of_a_data_set_is_an_overlay_of_known_ids_that_a_training_takes(tmp_path, no_timing, workflow, capsys):
    data = write_dataset(tmp_path / "data", num_classes=2)
    lists = json.loads((data / "dataset.json").read_text())
    for entry in lists["training"][3:]:
        (data / entry.pop("label")).unlink()
    for entry in lists["test"] + lists["validation"]:
        (data / entry["image"]).write_text("a plan never opens it")
    lists["labels"] = {"background": 0, "lower": 1, "upper": 2}
    (data / "dataset.json").write_text(json.dumps(lists))
    path = tmp_path / "plan.json"
    make_plan(dataset_dir=str(data), output=str(path), memory_gb=4, device="cpu")
    overlay = json.loads(path.read_text())
    assert overlay["num_labeled"] == 3 and overlay["class_names"] == ["lower", "upper"]
    assert overlay["spacing"] == pytest.approx([1.05, 1.0, 2.0], abs=0.06)
    assert all(n % 16 == 0 for n in overlay["patch_size"])
    parser = ConfigParser()
    parser.read_config(TRAIN)
    assert [key for key in overlay if key != "about" and key not in parser] == []
    printed = capsys.readouterr().out.splitlines()
    for key in (
        "num_classes",
        "spacing",
        "intensity_window",
        "patch_size",
        "stride",
        "foreground_crops",
        "base_filters",
    ):
        assert [line for line in printed if line.startswith(f"{key} ")], key
    assert f"hours: {2.0 * 17000 / 3600:.1f} for 17000 iterations at 2.00 s" in printed[-2]
    command, *words = printed[-1].partition("python -m scripts ")[2].split()
    assert (command, words[:2], words[2:4]) == ("train", ["cpu", str(path)], ["--dataset_dir", str(data)])
    for entry in lists["test"] + lists["validation"]:
        save(blob((20, 20, 20), seed=1)[0], las((1.0, 1.2, 2.0)), data / entry["image"])
    del lists["validation"]
    (data / "dataset.json").write_text(json.dumps(lists))
    settings = small(data, tmp_path / "out", max_iterations=1)
    for chosen in ("patch_size", "stride", "num_labeled", "base_filters"):
        settings.pop(chosen)
    bundle = workflow(TRAIN, str(path), run_id="training", **settings, base_filters=2)
    bundle.initialize()
    bundle.run()
    assert (tmp_path / "out" / "models" / "model.pt").is_file()


def test_plan_names_its_arguments_and_the_cache_that_does_not_fit(no_timing):
    cases = [fingerprint(), fingerprint(extent=None, label_values=(), foreground=np.empty(0))] * 200
    overlay, reasons = plan(cases, {}, device="cpu", memory=5e9, spacing=[1, 1, 1], max_iterations=100_000)
    assert overlay["spacing"] == [1.0, 1.0, 1.0] and overlay["max_iterations"] == 100_000
    (cache,) = [reason for reason in reasons if reason.startswith("cache_rate")]
    size = 200 * 4 * 200 * 180 * 180 * 3  # an image and a label, and an image
    assert f"take {size / 1e9:.1f} GB" in cache
    used = training_bytes(patch_size=overlay["patch_size"], crops=4, base_filters=8)
    # In tenths, rounded down.
    assert 0 <= (5e9 - used) / size - overlay["cache_rate"] < 0.1
    roomy, _ = plan(cases[:2], {}, device="cpu", memory=5e9, spacing=[1, 1, 1])
    assert "cache_rate" not in roomy
    assert "--max_iterations 21600 would take half a day" in reasons[-1]


def test_hours_of_a_gpu_that_is_not_here_are_not_made_up():
    _, reasons = plan([fingerprint()], {}, device="gpu", memory=12e9)
    if not torch.cuda.is_available():
        assert "not predicted" in reasons[-1]


def test_label_that_nnunet_calls_ignore_is_no_class_unless_another_is_given(tmp_path, no_timing, capsys):
    data = write_dataset(tmp_path / "data", num_classes=2)
    lists = json.loads((data / "dataset.json").read_text())
    lists["labels"] = {"background": 0, "object": 1, "ignore": 2}
    (data / "dataset.json").write_text(json.dumps(lists))
    options = {"dataset_dir": str(data), "output": str(tmp_path / "plan.json"), "memory_gb": 4, "device": "cpu"}
    make_plan(**options)
    overlay = json.loads(Path(options["output"]).read_text())
    assert (overlay["num_classes"], overlay["class_names"], overlay["ignore_value"]) == (1, ["object"], 2)
    assert "ignore_value 2: dataset.json calls this label value ignore." in capsys.readouterr().out
    with pytest.raises(DataError, match=r"label values \[2\]"):
        make_plan(**options, ignore_value=1)


def test_plan_refuses_what_the_training_would_refuse(tmp_path, no_timing):
    data = write_dataset(tmp_path / "data", counts=(3, 0, 0))
    options = {"dataset_dir": str(data), "output": str(tmp_path / "plan.json"), "memory_gb": 4, "device": "cpu"}
    with pytest.raises(ValueError, match="ignore_value is 65535"):
        make_plan(**options, ignore_value=65535)
    assert not (tmp_path / "plan.json").exists()


def test_class_names_are_read_in_both_directions():
    assert class_names({"labels": {"0": "background", "1": "a", "2": "b"}}, 2) == ["a", "b"]
    assert class_names({"labels": {"background": 0, "b": 2, "a": 1}}, 2) == ["a", "b"]
    assert class_names({"labels": {"0": "background", "1": "a"}}, 2) is None and class_names({}, 1) is None


@pytest.mark.parametrize("name", ["@front", "$front", "%front"])
def test_a_class_name_that_a_config_would_evaluate_is_refused(name):
    with pytest.raises(DataError, match=re.escape(name)):
        class_names({"labels": {"0": "background", "1": "back", "2": name}}, 2)


def test_plans_that_cannot_be_made_are_refused():
    with pytest.raises(DataError, match=r"label values \[1, 2, 4\].*--label_map.*--regions"):
        count_classes([fingerprint(label_values=(0, 1)), fingerprint(label_values=(0, 2, 4))])
    with pytest.raises(DataError, match="labels of all labeled cases are empty"):
        count_classes([fingerprint(label_values=(0,))])
    others = [fingerprint(file=f"3d_{n}.nii.gz") for n in range(2)]
    with pytest.raises(DataError) as caught:
        plan([fingerprint(channels=4, file="4d.nii.gz"), *others], {}, device="cpu", memory=8e9)
    assert "4d.nii.gz (4)" in str(caught.value) and "3d_" not in str(caught.value)
    with pytest.raises(DataError, match="device is 'tpu'"):
        resources("tpu", 1)
    with pytest.raises(DataError, match="memory_gb is -1"):
        resources("cpu", -1)


# --- what the plan's ids do in training ---


def crops(parser: ConfigParser, *, labeled: bool, count: int = 24) -> list[dict]:
    name = "train#dataset" if labeled else "train#unlabeled_dataset"
    stream = iter(crop_stream(parser.get_parsed_content(name), batch_size=1, seed=0, stream=0))
    return [next(stream) for _ in range(count)]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    """Volumes of 80x80x64 whose only foreground is one voxel; the unlabeled ones have no label file."""
    root = tmp_path_factory.mktemp("sparse")
    lists = {"training": []}
    for n in range(4):
        label = np.zeros((80, 80, 64), np.uint8)
        label[70, 8 + n, 50] = 1
        lists["training"].append({"image": f"{n}.nii.gz"})
        save(np.random.default_rng(n).normal(0, 1, label.shape).astype(np.float32), np.eye(4), root / f"{n}.nii.gz")
        if n < 2:
            lists["training"][-1]["label"] = f"{n}_seg.nii.gz"
            save(label, np.eye(4), root / f"{n}_seg.nii.gz")
    (root / "dataset.json").write_text(json.dumps(lists))
    return root


def parsed(folder: Path, **changes: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser.update({**small(folder, folder, num_labeled=2), **changes})
    return parser


def test_labeled_crops_are_drawn_to_the_foreground_and_unlabeled_ones_need_no_label(sparse):
    drawn = {share: crops(parsed(sparse, foreground_crops=share), labeled=True) for share in (0, 0.5, 1)}
    hits = {share: sum(int(crop["label"].sum() > 0) for crop in batch) for share, batch in drawn.items()}
    assert hits[0] <= 4 and 6 <= hits[0.5] <= 18 and hits[1] == 24
    for crop in drawn[1]:
        assert crop["image"].shape == crop["label"].shape == (1, 1, 16, 16, 16)
    for crop in crops(parsed(sparse, foreground_crops=1), labeled=False):
        assert set(crop) == {"image", "file"} and crop["image"].shape == (1, 1, 16, 16, 16)


def test_unlabeled_crops_are_the_same_whatever_is_asked_of_the_labeled_ones(sparse):
    plain, drawn = (crops(parsed(sparse, foreground_crops=share), labeled=False, count=6) for share in (0, 1))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(plain, drawn))


def test_z_score_over_the_voxels_that_are_not_zero_leaves_the_others_zero(tmp_path):
    image = np.zeros((20, 20, 20), np.float32)
    image[5:15, 5:15, 5:15] = np.random.default_rng(0).normal(50, 10, (10, 10, 10))
    entry = {"image": "i.nii.gz", "label": "l.nii.gz"}
    save(image, np.eye(4), tmp_path / "i.nii.gz")
    save((image > 0).astype(np.uint8), np.eye(4), tmp_path / "l.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry] * 2, "validation": [entry]}))
    for nonzero in (False, True):
        parser = parsed(tmp_path, normalize_nonzero=nonzero)
        score = parser.get_parsed_content("validate#dataset")[0]["image"][0].numpy()
        part = image[image != 0] if nonzero else image
        expected = (
            np.where(image != 0, (image - part.mean()) / part.std(), 0)
            if nonzero
            else (image - part.mean()) / part.std()
        )
        np.testing.assert_allclose(score, expected, atol=1e-4)
