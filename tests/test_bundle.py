"""Tests of the bundle: its configs agree with each other, and users' commands do what they say, on real files."""

from __future__ import annotations

import csv
import inspect
import json
import re
import shutil
from pathlib import Path
from pydoc import locate

import nibabel
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SHAPES,
    blob,
    delete_unlabeled_labels,
    las,
    merged,
    oblique,
    run_bundle,
    save,
    small,
    write_dataset,
)
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from test_dual_task import ABLATIONS as DUAL_TASK_ABLATIONS

from scripts.settings import MODEL_SETTINGS

CONFIGS = sorted((ROOT / "configs").rglob("*.json"))
PRESETS = sorted((ROOT / "configs" / "presets").glob("*.json"))
OVERLAYS = [
    path
    for path in CONFIGS
    if path.parent.name in ("ablations", "augmentations", "budgets", "data", "methods", "networks")
]
METHODS = [path for path in CONFIGS if path.parent.name == "methods"]
METADATA = ROOT / "configs" / "metadata.json"
SCHEMA = ROOT.parent / "shared" / "reference" / "meta_schema_20240725.json"
# Ids that a method may add: networks beside the one that is trained, with an optimiser of their own.
BESIDE = {"discriminator", "discriminator_optimizer"}
TRAIN, EVALUATE, INFERENCE = "configs/train.json", "configs/evaluate.json", "configs/inference.json"
PREFLIGHT = "configs/preflight.json"
SEVERAL_TRAIN, SEVERAL_EVALUATE = "configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def with_its_method(path: Path) -> list[str]:
    """An overlay, after the method whose ablation it is when its name begins with that of one (DBiSL needs none)."""
    methods = [m for m in METHODS if path.parent.name == "ablations" and path.stem.startswith(f"{m.stem}_")]
    return [f"configs/{name_of(file)}" for file in (*methods, path)]


def content(path: str | Path) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_mask_in_the_geometry_of(image: str | Path, mask: Path, *, values: set[int]) -> np.ndarray:
    """Checks shape, affine, type and values of a mask against its image, and returns its voxels."""
    image, mask = nibabel.load(image), nibabel.load(mask)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    voxels = np.asarray(mask.dataobj)
    assert set(np.unique(voxels)) <= values
    return voxels


def assert_ends_in_one_line(finished, text: str, *, status: int = 1) -> None:
    """Checks that a process failed with ``error: ...`` containing ``text`` as its last words and no traceback."""
    assert finished.returncode == status
    assert "Traceback" not in finished.stderr
    assert "\nerror: " in finished.stderr
    assert text in finished.stderr.rsplit("\nerror: ", 1)[1]


# --- configs ---


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_is_json_without_duplicate_keys(path):
    def refuse_duplicates(pairs):
        keys = [key for key, _ in pairs]
        assert len(set(keys)) == len(keys), keys
        return dict(pairs)

    assert isinstance(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_duplicates), dict)


@pytest.mark.parametrize(
    "files",
    [
        [TRAIN],
        [TRAIN, EVALUATE],
        [INFERENCE],
        [TRAIN, PREFLIGHT],
        [TRAIN, SEVERAL_TRAIN],
        [TRAIN, EVALUATE, SEVERAL_EVALUATE],
    ],
    ids=lambda files: Path(files[-1]).stem,
)
def test_every_reference_in_a_config_exists(files):
    parser = merged(*files)
    references = set(re.findall(r"@([A-Za-z_]\w*(?:(?:#|::)\w+)*)", json.dumps(parser.get())))
    assert len(references) > 10
    assert [reference for reference in sorted(references) if reference not in parser] == []


def is_argument(key: str, parser: ConfigParser) -> bool:
    """Whether ``key``, such as network_def#tasks, is an argument of the class that its object is made from."""
    owner, _, name = key.rpartition("#")
    target = locate(parser[f"{owner}#_target_"]) if f"{owner}#_target_" in parser else None
    return target is not None and name in inspect.signature(target).parameters


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_overlay_sets_nothing_but_what_train_json_or_the_class_that_it_names_has(path):
    train, whole = merged(TRAIN, *with_its_method(path)[:-1]), merged(TRAIN, *with_its_method(path))
    allowed = {"about"} | (BESIDE if path.parent.name == "methods" else set())
    keys = [key.lstrip("+") for key in content(path) if key not in allowed]
    assert [key for key in keys if key not in train and not is_argument(key, whole)] == []


def test_an_argument_that_the_class_does_not_have_is_none():
    parser = merged(TRAIN, "configs/methods/dtc.json")
    assert is_argument("network_def#tasks", parser) and not is_argument("network_def#task", parser)
    assert not is_argument("num_labelled", parser)


def test_evaluate_json_sets_nothing_of_its_own_but_its_run_list_what_its_loader_reads_and_options_of_inference():
    train, inference = merged(TRAIN), content(INFERENCE)
    own = {key for key in content(EVALUATE) if key not in train}
    options = {"save_uncertainty", "save_volumes", "decoders", "heads", "threshold", "flip_axes", "networks"}
    assert own == {"evaluation", "evaluation_list", "validate#tolerant_dataset", "ckpt_path", "maps"} | options
    assert all(content(EVALUATE)[key] == inference[key] for key in options)


@pytest.mark.parametrize("path", [path for path in OVERLAYS if path.parent.name != "networks"], ids=name_of)
def test_every_part_of_training_can_be_made_with_an_overlay(path, tiny, tmp_path):
    parser = merged(TRAIN, *with_its_method(path))
    count = parser["num_classes"]
    # The label coding asks the list of cases whether labels are partial, and a data set's splits do not fit this one.
    parser.update(small(tiny, tmp_path, base_filters=1, splits=None))
    network = parser.get_parsed_content("network").train()
    objective = parser.get_parsed_content("objective")
    parser.get_parsed_content("optimizer")
    transforms = parser.get_parsed_content("train#preprocessing").transforms
    image = torch.randn(4, parser["in_channels"], 16, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 1, 16, 16, 16)
    label[:, :, 4:9, 4:9, 4:9] = 1
    targets = objective.views({"image": image[:2], "label": label}, {"image": image[2:]}, 0)
    heads = objective.predict(network, targets["image"])
    loss = objective(heads, targets, 0)
    objective.after_step(0)
    for name, head in heads.items():
        softmax = name.startswith("logits") and head.shape[1] == count + 1
        assert softmax or name.startswith("features") or head.shape[1] == count, name
    assert set(loss.terms) == {name for name in objective.TERMS if objective.active(name)}
    assert loss.total.isfinite() and loss.total.requires_grad
    assert len(transforms) >= 8


@pytest.mark.parametrize(
    "path", OVERLAYS + [ROOT / TRAIN, ROOT / EVALUATE, ROOT / INFERENCE, ROOT / PREFLIGHT], ids=name_of
)
def test_config_says_what_it_is(path):
    assert len(content(path)["about"]) > 20


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_preset_names_files_and_ids_that_exist(path):
    preset = content(path)
    made_by_training = [file for file in preset["config_file"] if file.startswith("outputs/")]
    shipped = [file for file in preset["config_file"] if file not in made_by_training]
    assert all(Path(file).name == "model.json" for file in made_by_training)
    assert [file for file in shipped if not (ROOT / file).is_file()] == []
    parser = merged(*shipped)
    assert preset["run_id"] in parser
    assert [key for key in preset if key not in ("run_id", "config_file") and key not in parser] == []


# --- train.json, evaluate.json and inference.json ---


def image_steps(transforms: list[dict]) -> list[dict]:
    """The transforms as far as the image sees them: without labels, their interpolation and what concerns them."""
    steps = []
    for transform in transforms:
        step = {key: value for key, value in transform.items() if key not in ("keys", "allow_missing_keys")}
        keys = [transform["keys"]] if isinstance(transform["keys"], str) else transform["keys"]
        if "image" not in keys:
            continue
        for name in ("mode", "dtype"):
            if isinstance(step.get(name), list):
                step[name] = step[name][keys.index("image")]
        for name in ("track_meta", "device"):  # of the cache
            step.pop(name, None)
        steps.append(step)
    return steps


def test_image_is_preprocessed_alike_in_training_evaluation_and_inference():
    inference = image_steps(content(INFERENCE)["preprocessing"]["transforms"])
    assert inference == image_steps(content(EVALUATE)["validate#load_transforms"])
    assert inference == image_steps(content(TRAIN)["train"]["load_transforms"])


@pytest.mark.parametrize("key", ["network_def", "label_coding", "model_settings", "sw_batch_size"])
def test_inference_json_says_the_same_as_train_json(key):
    trained = content(TRAIN)[key]
    if key == "label_coding":  # inference has no labels, of which something could be unknown or misnamed
        trained = {
            name: value for name, value in trained.items() if name not in ("ignore_value", "partial", "class_names")
        }
    assert content(INFERENCE)[key] == trained


def test_network_of_a_training_is_that_of_inference_with_weights_to_start_from():
    assert content(TRAIN)["network"]["network"] == content(INFERENCE)["network"]


def test_windows_of_inference_are_those_of_the_evaluation():
    assert content(INFERENCE)["inferer"] == content(EVALUATE)["validate#inferer"]


def test_training_hands_every_setting_of_the_model_on_to_inference():
    overlay = content(TRAIN)["train"]["inference_overlay"]
    inference = list(content(INFERENCE))
    first, last = inference.index("in_channels"), inference.index("stride")
    assert list(MODEL_SETTINGS) == inference[first : last + 1]
    assert content(TRAIN)["model_settings"] == {key: f"@{key}" for key in MODEL_SETTINGS}
    assert (overlay["settings"], overlay["network"]) == ("@model_settings", "@network_def")


def test_settings_of_inference_json_are_those_of_the_shipped_weights():
    shipped = content("models/model.json")
    assert {key: shipped.get(key) for key in MODEL_SETTINGS} == {key: content(INFERENCE)[key] for key in MODEL_SETTINGS}


def test_volumes_and_network_of_inference_json_are_those_of_the_preset():
    arguments = content("configs/presets/left_atrium_cpu.json")
    preset = {**merged(*arguments.pop("config_file")).get(), **arguments}
    inference = content(INFERENCE)
    keys = list(inference)[list(inference).index("in_channels") : list(inference).index("stride") + 1]
    for own in ("patch_size", "stride"):  # the shipped weights were trained on with larger crops than the preset's
        keys.remove(own)
    assert {key: inference[key] for key in keys} == {key: preset[key] for key in keys}


# --- ablations ---


def describe(*files: str) -> dict[str, object]:
    """The resolved objective as a flat table: weights, switches and transforms."""
    parser = merged(TRAIN, *files)
    objective = parser.get_parsed_content("objective")
    s2r = objective.segmentation_to_distance
    table = {name: (w.length, w.peak) if callable(w) else w for name, w in objective.weights.items()}
    for switch in ("r2s_cross_entropy", "hard_pseudo_labels", "pseudo_on_labeled", "unanimity"):
        table[switch] = getattr(objective, switch)
    for setting in ("factor", "subtract_first", "detach_extrema"):
        table[setting] = getattr(s2r, setting)
    table["transform"] = type(s2r.transform).__name__
    for setting in ("radius", "h"):
        table[setting] = getattr(s2r.transform, setting, None)
    table |= {name: parser[name] for name in ("normalization", "dropout")}
    table["k"] = objective.distance_to_segmentation.k
    table["transforms"] = [transform["_target_"] for transform in parser["train"]["load_transforms"]]
    return table


def off(*terms: str) -> dict[str, int]:
    return dict.fromkeys(terms, 0)


CONSISTENCY_INTRA = ("consistency_segmentation", "consistency_distance")
CONSISTENCY_CROSS = ("consistency_s2r", "consistency_r2s")
SUPERVISION_CROSS = ("supervised_s2r", "supervised_r2s")


# What each of DBiSL's ablations changes; those of DTC and DTML are in test_dual_task.py.
ABLATIONS = {
    "without_pseudo_supervision": off("pseudo"),
    "without_cross_task_supervision": off(*SUPERVISION_CROSS),
    "without_intra_task_consistency": off(*CONSISTENCY_INTRA),
    "without_cross_task_consistency": off(*CONSISTENCY_CROSS),
    "without_consistency": off(*CONSISTENCY_INTRA, *CONSISTENCY_CROSS),
    "without_distance_task": {
        **off("supervised_distance", "consistency_distance", *SUPERVISION_CROSS, *CONSISTENCY_CROSS),
        "unanimity": "segmentation",
    },
    "only_s2r": off("supervised_r2s", "consistency_r2s"),
    "only_r2s": off("supervised_s2r", "consistency_s2r"),
    "pseudo_without_labeled": {"pseudo_on_labeled": False},
    "factor_0.1": {"factor": 0.1},
    "factor_0.3": {"factor": 0.3},
}


@pytest.mark.parametrize("ablation, changed", ABLATIONS.items(), ids=ABLATIONS)
def test_ablation_changes_what_it_is_named_for_and_nothing_else(ablation, changed):
    full, ablated = describe(), describe(f"configs/ablations/{ablation}.json")
    assert {key: ablated[key] for key in full if ablated[key] != full[key]} == changed


def test_pre_generated_maps_add_one_step_to_the_preprocessing_and_change_nothing_else():
    full, ablated = describe(), describe("configs/ablations/pre_generated_maps.json")
    assert ablated.pop("transforms") == [*full.pop("transforms"), "scripts.data.PreGeneratedMapd"]
    assert ablated == full
    # A validation compares masks, and would keep the maps for nothing.
    parser = merged(TRAIN, "configs/ablations/pre_generated_maps.json")
    kept = [type(transform).__name__ for transform in parser.get_parsed_content("validate#preprocessing").transforms]
    assert kept == [type(t).__name__ for t in merged(TRAIN).get_parsed_content("validate#preprocessing").transforms]


def test_dbisl_paper_is_the_papers():
    form = describe("configs/methods/dbisl_paper.json")
    lambdas = [value for name, value in form.items() if name.startswith(("supervised_", "consistency_"))]
    assert lambdas == [0.5] * 8
    assert form["pseudo"] == (6000, 1.0)
    assert (form["transform"], form["detach_extrema"]) == ("CascadedDistance", False)
    assert form["r2s_cross_entropy"] and form["pseudo_on_labeled"] and not form["hard_pseudo_labels"]
    assert (form["factor"], form["k"], form["unanimity"]) == (0.5, 1500, "both")
    assert not form["subtract_first"]
    assert (form["radius"], form["h"], form["normalization"], form["dropout"]) == (1, 0.35, "batch", 0.5)


def test_default_is_what_the_page_of_the_method_says():
    form, ramped = describe(), (6000, 1.0)
    assert {name: form[name] for name in ("supervised_segmentation", "supervised_distance")} == {
        "supervised_segmentation": 1.0,
        "supervised_distance": 1.0,
    }
    assert all(form[name] == ramped for name in (*SUPERVISION_CROSS, *CONSISTENCY_INTRA, *CONSISTENCY_CROSS, "pseudo"))
    assert (form["transform"], form["detach_extrema"]) == ("ExactDistance", True)
    assert not form["r2s_cross_entropy"] and form["pseudo_on_labeled"] and not form["hard_pseudo_labels"]
    assert (form["factor"], form["k"], form["unanimity"]) == (1, 1500, "both")
    assert (form["normalization"], form["dropout"]) == ("group", 0.5)
    optimizer = content(TRAIN)["optimizer"]
    assert (optimizer["_target_"], content(TRAIN)["learning_rate"]) == ("torch.optim.SGD", 0.01)
    assert (optimizer["momentum"], optimizer["weight_decay"]) == (0.9, 1e-4)


def test_every_ablation_is_tested():
    names = {path.stem for path in (ROOT / "configs" / "ablations").glob("*.json")}
    assert names == {*ABLATIONS, *(row[1] for row in DUAL_TASK_ABLATIONS if row[1]), "pre_generated_maps"}


# --- properties and metadata ---


def test_training_has_every_property_that_clients_ask_for(workflow, tiny, tmp_path):
    bundle = workflow(TRAIN, **small(tiny, tmp_path))
    bundle.initialize()
    assert bundle.check_properties() == []


def test_evaluation_has_every_property_that_clients_ask_for(workflow, tiny, tmp_path):
    bundle = workflow(TRAIN, EVALUATE, **small(tiny, tmp_path))
    bundle.initialize()
    assert bundle.check_properties() == []


def test_inference_has_every_property_that_clients_ask_for(workflow, tiny, tmp_path):
    folders = {"dataset_dir": str(tiny / "images"), "output_dir": str(tmp_path)}
    bundle = workflow(INFERENCE, workflow_type="inference", **folders)
    bundle.initialize()
    assert bundle.check_properties() == []


@pytest.mark.skipif(not METADATA.is_file(), reason="configs/metadata.json is not there")
@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no copy of MONAI's schema at {SCHEMA}")
def test_metadata_fits_monais_schema():
    from jsonschema import validate

    validate(instance=json.loads(METADATA.read_text()), schema=json.loads(SCHEMA.read_text()))


@pytest.mark.skipif(not METADATA.is_file(), reason="configs/metadata.json is not there")
def test_metadata_describes_the_network_and_this_version():
    metadata, inference = json.loads(METADATA.read_text()), content(INFERENCE)
    assert metadata["version"] in metadata["changelog"]
    image = metadata["network_data_format"]["inputs"]["image"]
    prediction = metadata["network_data_format"]["outputs"]["pred"]
    assert image["num_channels"] == inference["in_channels"]
    assert prediction["num_channels"] == inference["num_classes"]
    names = prediction["channel_def"]
    assert [names[str(value)] for value in range(len(names))] == ["background", *inference["class_names"]]


@pytest.mark.skipif(not METADATA.is_file(), reason="configs/metadata.json is not there")
def test_metadata_names_the_versions_of_requirements_txt():
    metadata = json.loads(METADATA.read_text())
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    assert (metadata["monai_version"], metadata["pytorch_version"]) == (pins["monai"], pins["torch"])
    required = metadata["required_packages_version"]
    assert {name: pins.get(name) for name in required} == required


# --- train, evaluate, infer: three real processes ---


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> tuple[Path, str]:
    """Output folder and standard output of the command that trains."""
    output = tmp_path_factory.mktemp("trained")
    finished = run_bundle("training", TRAIN, **small(tiny, output))
    assert finished.returncode == 0, finished.stderr
    return output, finished.stdout


@pytest.fixture(scope="module")
def evaluated(tiny, trained) -> Path:
    """Output folder of the command that evaluates the trained weights."""
    finished = run_bundle("evaluation", TRAIN, EVALUATE, **small(tiny, trained[0]))
    assert finished.returncode == 0, finished.stderr
    return trained[0]


@pytest.fixture(scope="module")
def inferred(trained, tmp_path_factory):
    """Input and output folder, and the finished process, of the command that segments new volumes."""
    folder = tmp_path_factory.mktemp("inferred")
    new, output, models = folder / "new", folder / "masks", trained[0] / "models"
    save(blob(SHAPES[0], seed=90)[0], las((1.0, 1.2, 2.0)), new / "las.nii.gz")
    save(blob(SHAPES[1], seed=91)[0], oblique((1.0, 1.2, 2.0)), new / "oblique.nii.gz")
    save(blob((10, 22, 9), seed=92)[0], las((2.0, 1.0, 1.5))[[2, 0, 1, 3]], new / "small.nii")
    (new / "broken.nii.gz").write_text("not an image")
    finished = run_bundle(
        "inference",
        INFERENCE,
        str(models / "model.json"),
        input_dir=str(new),
        output_dir=str(output),
        ckpt_path=str(models / "model.pt"),
        save_probability=True,
        save_distance=True,
        device="$torch.device('cpu')",
    )
    return new, output, finished


def test_training_leaves_weights_as_a_plain_state_dict_that_fits_the_network(trained):
    state = weights(trained[0])
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    parser = merged(INFERENCE)
    parser.read_config([str(ROOT / INFERENCE), str(trained[0] / "models" / "model.json")])
    parser.get_parsed_content("network_def").load_state_dict(state)
    assert not list((trained[0] / "models").glob("*epoch*"))


def test_training_leaves_the_settings_of_inference_beside_the_weights(trained, tiny):
    settings = json.loads((trained[0] / "models" / "model.json").read_text())
    assert set(settings) <= set(content(INFERENCE))
    overrides = small(tiny, trained[0])
    for key in ("base_filters", "patch_size", "stride"):
        assert settings[key] == overrides[key]
    assert (settings["in_channels"], settings["num_classes"], settings["spacing"]) == (1, 1, None)


def test_training_validates_and_keeps_the_best_weights(trained):
    best = torch.load(trained[0] / "models" / "model_best.pt", weights_only=True)
    assert best.keys() == weights(trained[0]).keys()
    assert all(0 <= float(row["val_mean_dice"]) <= 1 for row in rows(trained[0] / "validation_log.csv"))


def test_training_logs_every_term_of_every_iteration(trained):
    log = rows(trained[0] / "training_log.csv")
    assert [int(row["iteration"]) for row in log] == [1, 2, 3, 4]
    terms = [key.removesuffix("_weight") for key in log[0] if key.endswith("_weight")]
    assert len(terms) == 9
    for row in log:
        total = sum(float(row[term]) * float(row[f"{term}_weight"]) for term in terms)
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)


def test_learning_rate_in_the_log_is_the_one_its_iteration_used(trained):
    rates = [float(row["learning_rate"]) for row in rows(trained[0] / "training_log.csv")]
    assert rates == pytest.approx([0.01 * (1 - t / 4) ** 0.9 for t in range(4)])


def test_evaluation_writes_a_mask_in_the_geometry_of_every_test_image(tiny, evaluated):
    masks = sorted(evaluated.glob("*_seg.nii.gz"))
    assert [mask.name for mask in masks] == ["test_0_seg.nii.gz", "test_1_seg.nii.gz"]
    for mask in masks:
        image = tiny / "images" / mask.name.replace("_seg", "")
        assert_mask_in_the_geometry_of(image, mask, values={0, 1})


def test_evaluation_writes_the_metrics_of_every_case_which_are_those_of_its_masks(tiny, evaluated):
    header = (evaluated / "metrics.csv").read_text().splitlines()[0]
    metrics = "dice,jaccard,hd95_mm,asd_mm,hd95_voxel,asd_voxel,surface_dice"
    assert header == f"case,class,{metrics},surface_tolerance_mm,list"
    table = rows(evaluated / "metrics.csv")
    assert [(row["case"], row["class"]) for row in table] == [("test_0", "1"), ("test_1", "1")]
    for row in table:
        mask = np.asarray(nibabel.load(evaluated / f"{row['case']}_seg.nii.gz").dataobj) > 0
        label = np.asarray(nibabel.load(tiny / "labels" / f"{row['case']}.nii.gz").dataobj) > 0
        assert float(row["dice"]) == pytest.approx(2 * (mask & label).sum() / (mask.sum() + label.sum()))


def test_evaluation_writes_the_means_of_the_metrics(evaluated):
    summary = {row["metric"]: row for row in rows(evaluated / "metrics_summary.csv")}
    table = rows(evaluated / "metrics.csv")
    assert list(summary) == list(table[0])[2:-2]
    assert {row["list"] for row in table} == {row["list"] for row in summary.values()} == {"test"}
    for metric in ("dice", "jaccard"):
        assert summary[metric]["n"] == "2"
        assert float(summary[metric]["mean"]) == pytest.approx(np.mean([float(row[metric]) for row in table]))


def test_evaluation_lists_the_test_case_whose_label_does_not_fit_and_measures_the_other(tiny_copy, trained, tmp_path):
    label = nibabel.load(tiny_copy / "labels" / "test_0.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj)[:-1], label.affine), label.get_filename())
    overrides = {**small(tiny_copy, tmp_path), "ckpt_dir": str(trained[0] / "models")}
    finished = run_bundle("evaluation", TRAIN, EVALUATE, **overrides)
    assert_ends_in_one_line(
        finished, f"1 of 2 cases failed; the others are complete. The reasons are in {tmp_path}", status=2
    )
    assert [row["case"] for row in rows(tmp_path / "metrics.csv")] == ["test_1"]
    (failure,) = rows(tmp_path / "failures.csv")
    assert failure["case"].endswith("images/test_0.nii.gz") and "labels/test_0.nii.gz" in failure["reason"]


def test_evaluation_writes_no_masks_among_the_references(tiny, trained):
    overrides = {**small(tiny, tiny / "labels"), "ckpt_dir": str(trained[0] / "models")}
    finished = run_bundle("evaluation", TRAIN, EVALUATE, **overrides)
    assert_ends_in_one_line(finished, "lies in output_dir, where masks are written: choose another output_dir.")


def test_inference_logs_a_line_for_every_case_with_its_seconds_volume_and_mask(inferred):
    _, output, finished = inferred
    for name in ("las", "oblique", "small"):
        mask = nibabel.load(output / f"{name}_seg.nii.gz")
        millilitres = np.count_nonzero(mask.dataobj) * np.prod(mask.header.get_zooms()) / 1000
        line = rf"{name}: ([\d.]+) s; class 1: ([\d.e-]+) ml; {re.escape(str(output))}/{name}_seg.nii.gz"
        ((seconds, volume),) = re.findall(line, finished.stdout)
        assert float(volume) == pytest.approx(millilitres, rel=1e-3) and float(seconds) >= 0
    assert "broken: " not in finished.stdout


def test_masks_of_another_folder_are_not_taken_for_finished(inferred, trained, tmp_path):
    _, output, _ = inferred
    save(blob(SHAPES[2], seed=93)[0], las((1.0, 1.2, 2.0)), tmp_path / "other" / "las.nii.gz")
    finished = run_bundle(
        "inference",
        INFERENCE,
        str(trained[0] / "models" / "model.json"),
        input_dir=str(tmp_path / "other"),
        output_dir=str(output),
        ckpt_path=str(trained[0] / "models" / "model.pt"),
        save_probability=True,
        save_distance=True,
    )
    assert_ends_in_one_line(finished, f"las.nii.gz and not of {tmp_path / 'other'}")


def test_a_run_of_which_no_case_succeeds_has_status_1_and_one_without_failures_0(inferred, trained, tmp_path):
    new, output, _ = inferred
    model = str(trained[0] / "models" / "model.json")
    options = {"ckpt_path": str(trained[0] / "models" / "model.pt"), "device": "$torch.device('cpu')"}
    broken = run_bundle(
        "inference", INFERENCE, model, input_dir=str(new / "broken.nii.gz"), output_dir=str(tmp_path), **options
    )
    assert_ends_in_one_line(broken, "1 of 1 cases failed. The reasons")
    one = run_bundle(
        "inference", INFERENCE, model, input_dir=str(new / "small.nii"), output_dir=str(tmp_path), **options
    )
    assert one.returncode == 0, one.stderr
    first, second = (nibabel.load(folder / "small_seg.nii.gz") for folder in (output, tmp_path))
    assert np.array_equal(first.dataobj, second.dataobj)


def test_inference_writes_masks_and_maps_in_the_geometry_of_volumes_however_they_lie(inferred):
    new, output, _ = inferred
    for image in (new / "las.nii.gz", new / "oblique.nii.gz", new / "small.nii"):
        name = image.name.split(".")[0]
        mask = assert_mask_in_the_geometry_of(image, output / f"{name}_seg.nii.gz", values={0, 1})
        maps = {}
        for kind in ("probability", "distance"):
            volume = nibabel.load(output / f"{name}_{kind}.nii.gz")
            np.testing.assert_allclose(volume.affine, nibabel.load(image).affine, atol=1e-4)
            assert volume.get_data_dtype() == np.float32
            maps[kind] = np.asarray(volume.dataobj)
            assert maps[kind].shape == mask.shape
        assert np.array_equal(mask == 1, maps["probability"] > 0.5)
        assert 0 <= maps["probability"].min() < maps["probability"].max() <= 1
        assert -1 <= maps["distance"].min() < maps["distance"].max() <= 1


def test_inference_reports_the_broken_volume_and_fails_in_the_end(inferred):
    new, output, finished = inferred
    (failure,) = rows(output / "failures.csv")
    assert failure["case"] == str(new / "broken.nii.gz")
    assert "broken.nii.gz is not a readable NIfTI file (not a gzip file although" in failure["reason"]
    assert not list(output.glob("broken*"))
    assert_ends_in_one_line(
        finished, f"1 of 4 cases failed; the others are complete. The reasons are in {output}", status=2
    )


# --- bad input ends before training, as a process ---


def test_missing_dataset_json_ends_in_one_line_before_training(tmp_path):
    finished = run_bundle("training", TRAIN, **small(tmp_path / "nothing", tmp_path / "out"))
    assert_ends_in_one_line(finished, f"{tmp_path}/nothing/dataset.json does not exist: set dataset_dir")
    assert not (tmp_path / "out").exists()


def test_wrong_number_of_channels_ends_in_one_line_before_training(tiny, tmp_path):
    finished = run_bundle("training", TRAIN, **small(tiny, tmp_path / "out", in_channels=2))
    assert_ends_in_one_line(finished, "has 1 channel(s) and the network takes 2: set in_channels to 1.")
    assert "the preflight found 7 errors" in finished.stderr  # all labeled, unlabeled and validation cases at once
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preflight.json", "preflight.txt"]


@pytest.mark.long
def test_inference_without_its_weights_ends_in_one_line_that_names_them(tiny, tmp_path):
    finished = run_bundle(
        "inference", INFERENCE, input_dir=str(tiny / "images"), output_dir=str(tmp_path), ckpt_path="models/none.pt"
    )
    assert_ends_in_one_line(finished, "models/none.pt")


@pytest.mark.long
def test_the_same_command_twice_gives_identical_weights(tiny, trained, tmp_path):
    finished = run_bundle("training", TRAIN, **small(tiny, tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert same(weights(tmp_path), weights(trained[0]))


@pytest.mark.long
def test_training_with_data_workers_ends_by_itself(tiny, tmp_path):
    finished = run_bundle("training", TRAIN, **small(tiny, tmp_path, num_workers=2))
    assert finished.returncode == 0, finished.stderr
    assert len(rows(tmp_path / "training_log.csv")) == 4


# --- the same through MONAI's API, in this process ---


def run_in_process(workflow, *files: str, run_id: str = "run", **overrides) -> None:
    bundle = workflow(*files, run_id=run_id, **overrides)
    bundle.initialize()
    bundle.run()
    bundle.finalize()


def test_a_client_that_initializes_runs_and_finalizes_trains_the_same_weights(workflow, tiny, trained, tmp_path):
    run_in_process(workflow, TRAIN, **small(tiny, tmp_path))
    assert same(weights(tmp_path), weights(trained[0]))


def test_another_seed_trains_other_weights(workflow, tiny, trained, tmp_path):
    run_in_process(workflow, TRAIN, **small(tiny, tmp_path, seed=1, max_iterations=1))
    assert not same(weights(tmp_path), weights(trained[0]))


def test_the_evaluation_of_a_run_refuses_the_weights_of_another_in_its_ckpt_dir(workflow, tiny, tmp_path):
    runs = [small(tiny, tmp_path / name, max_iterations=1, ckpt_dir=str(tmp_path / "models")) for name in "ab"]
    for options in runs:
        run_in_process(workflow, TRAIN, run_id="training", run_preflight=False, mlflow=False, **options)
    digests = [json.loads((tmp_path / name / "run.json").read_text())["digest"] for name in "ab"]
    assert digests[0] != digests[1]
    assert json.loads((tmp_path / "models" / "model.json").read_text())["run_digest"] == digests[1]
    with pytest.raises(RuntimeError) as caught:
        run_in_process(workflow, TRAIN, EVALUATE, **runs[0])
    refused = caught.value.__cause__ or caught.value
    assert f"is of the run {digests[1]}" in str(refused) and f"the run {digests[0]}" in str(refused)
    run_in_process(workflow, TRAIN, EVALUATE, **runs[1])
    run_in_process(workflow, TRAIN, EVALUATE, **{**runs[0], "output_dir": str(tmp_path / "elsewhere")})
    assert len(rows(tmp_path / "b" / "metrics.csv")) == len(rows(tmp_path / "elsewhere" / "metrics.csv")) == 2


def test_deleting_the_label_files_of_unlabeled_cases_changes_no_weight(workflow, tiny_copy, trained, tmp_path):
    delete_unlabeled_labels(tiny_copy)
    run_in_process(workflow, TRAIN, run_id="training", **small(tiny_copy, tmp_path))
    assert same(weights(tmp_path), weights(trained[0]))


def test_unlabeled_images_matter(workflow, tiny_copy, trained, tmp_path):
    entries = json.loads((tiny_copy / "dataset.json").read_text())["training"]
    shutil.copy(tiny_copy / entries[-2]["image"], tiny_copy / entries[-1]["image"])
    run_in_process(workflow, TRAIN, **small(tiny_copy, tmp_path))
    assert not same(weights(tmp_path), weights(trained[0]))


def test_supervised_method_trains_on_labeled_crops_and_goes_through_evaluation_and_inference(workflow, tiny, tmp_path):
    method = "configs/methods/supervised.json"
    run_in_process(workflow, TRAIN, method, **small(tiny, tmp_path))
    log = rows(tmp_path / "training_log.csv")
    assert [key for key in log[0] if key.endswith("_weight")] == ["supervised_segmentation_weight"]
    run_in_process(workflow, TRAIN, method, EVALUATE, **small(tiny, tmp_path))
    assert len(rows(tmp_path / "metrics.csv")) == 2
    bundle = workflow(
        INFERENCE,
        str(tmp_path / "models" / "model.json"),
        workflow_type="inference",
        input_dir=str(tiny / "images"),
        output_dir=str(tmp_path / "masks"),
        ckpt_path=str(tmp_path / "models" / "model.pt"),
    )
    bundle.initialize()
    bundle.run()
    assert len(list((tmp_path / "masks").glob("*_seg.nii.gz"))) == 9
    # Same weights, same windows: the masks of the evaluation.
    for mask in tmp_path.glob("test_*_seg.nii.gz"):
        again = nibabel.load(tmp_path / "masks" / mask.name)
        assert np.array_equal(np.asarray(nibabel.load(mask).dataobj), np.asarray(again.dataobj))


def test_supervised_method_does_not_even_open_the_unlabeled_images(workflow, tiny_copy, tmp_path):
    for path in (tiny_copy / "images").glob("training_[345].nii.gz"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])  # readable header, so that the checks pass
    run_in_process(workflow, TRAIN, "configs/methods/supervised.json", **small(tiny_copy, tmp_path))
    assert (tmp_path / "models" / "model.pt").is_file()


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("two") / "data", num_classes=2)


def test_two_classes_go_through_training_and_evaluation(workflow, two_classes, tmp_path):
    overrides = small(two_classes, tmp_path, num_classes=2, class_names=["lower", "upper"])
    run_in_process(workflow, TRAIN, **overrides)
    assert json.loads((tmp_path / "models" / "model.json").read_text())["class_names"] == ["lower", "upper"]
    run_in_process(workflow, TRAIN, EVALUATE, **overrides)
    table = rows(tmp_path / "metrics.csv")
    assert [(row["case"], row["class"]) for row in table] == [
        (case, name) for case in ("test_0", "test_1") for name in ("lower", "upper")
    ]
    assert {row["class"] for row in rows(tmp_path / "metrics_summary.csv")} == {"lower", "upper", "all"}
    for mask in tmp_path.glob("*_seg.nii.gz"):
        image = two_classes / "images" / mask.name.replace("_seg", "")
        assert_mask_in_the_geometry_of(image, mask, values={0, 1, 2})


def test_overlapping_regions_go_through_training_validation_and_evaluation(workflow, two_classes, tmp_path):
    overrides = small(two_classes, tmp_path, num_classes=2, regions=[[1, 2], [2]], class_names=["whole", "upper"])
    run_in_process(workflow, TRAIN, **overrides)
    assert (tmp_path / "models" / "model_best.pt").is_file()
    run_in_process(workflow, TRAIN, EVALUATE, **overrides)
    assert [row["class"] for row in rows(tmp_path / "metrics.csv")] == ["whole", "upper"] * 2
    image = nibabel.load(two_classes / "images" / "test_0.nii.gz")
    assert nibabel.load(tmp_path / "test_0_seg.nii.gz").shape == (*image.shape, 2)


def test_several_modalities_as_a_list_of_files_go_through_training_and_evaluation(workflow, tiny_copy, tmp_path):
    lists = json.loads((tiny_copy / "dataset.json").read_text())
    for entry in (entry for entries in lists.values() for entry in entries):
        entry["image"] = [entry["image"], entry["image"]]
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    overrides = small(tiny_copy, tmp_path, in_channels=2, max_iterations=1)
    run_in_process(workflow, TRAIN, **overrides)
    assert weights(tmp_path)["encoder.levels.0.0.0.weight"].shape[1] == 2
    run_in_process(workflow, TRAIN, EVALUATE, **overrides)
    assert [row["case"] for row in rows(tmp_path / "metrics.csv")] == ["test_0", "test_1"]


def test_volumes_may_be_resampled_and_their_intensities_scaled(workflow, tiny, tmp_path):
    overrides = small(tiny, tmp_path, spacing=[1.5, 1.5, 1.5], intensity_window=[0, 400], max_iterations=1)
    run_in_process(workflow, TRAIN, **overrides)
    run_in_process(workflow, TRAIN, EVALUATE, **overrides)
    for mask in tmp_path.glob("*_seg.nii.gz"):
        assert_mask_in_the_geometry_of(tiny / "images" / mask.name.replace("_seg", ""), mask, values={0, 1})


def test_validation_case_without_a_label_is_refused_before_training(workflow, tiny_copy, tmp_path):
    lists = json.loads((tiny_copy / "dataset.json").read_text())
    del lists["validation"][0]["label"]
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    bundle = workflow(TRAIN, **small(tiny_copy, tmp_path / "out"))
    bundle.initialize()
    with pytest.raises(RuntimeError):
        bundle.run()
    assert not (tmp_path / "out").exists()


def test_a_run_shorter_than_the_interval_of_its_validations_is_validated_at_its_end(workflow, tiny, tmp_path):
    overrides = small(tiny, tmp_path, max_iterations=2, epoch_length=1, num_epochs=2, val_interval=5)
    run_in_process(workflow, TRAIN, **overrides)
    assert [row["iteration"] for row in rows(tmp_path / "validation_log.csv")] == ["2"]
    assert (tmp_path / "models" / "model_best.pt").is_file()
    assert (tmp_path / "models" / "model_best.json").read_text() == (tmp_path / "models" / "model.json").read_text()


def test_training_works_without_validation_and_without_unlabeled_cases(workflow, tiny_copy, tmp_path):
    lists = json.loads((tiny_copy / "dataset.json").read_text())
    (tiny_copy / "dataset.json").write_text(json.dumps({"training": lists["training"][:3]}))
    run_in_process(workflow, TRAIN, **small(tiny_copy, tmp_path))
    assert (tmp_path / "models" / "model.pt").is_file()
    assert not (tmp_path / "models" / "model_best.pt").exists()


def test_federated_client_trains_rounds_and_evaluates(workflow, tiny, tmp_path):
    overrides = small(tiny, tmp_path)
    client = MonaiAlgo(
        bundle_root=str(ROOT), local_epochs=1, send_weight_diff=False, train_kwargs=overrides, eval_kwargs=overrides
    )
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: ""})
    start = {name: value.clone() for name, value in client.trainer.network.state_dict().items()}
    received = start
    for number in (1, 2):
        client.train(ExchangeObject(weights=received, weight_type=WeightType.WEIGHTS))
        assert client.trainer.state.iteration == 4 * number
        received = {name: value.clone() for name, value in client.get_weights().weights.items()}
    assert not same(start, received)
    assert [int(row["iteration"]) for row in rows(tmp_path / "training_log.csv")] == list(range(1, 9))
    metrics = client.evaluate(ExchangeObject(weights=start, weight_type=WeightType.WEIGHTS)).metrics
    assert 0 <= metrics["test_mean_dice"] <= 1
    # What the server sent is evaluated, not what this client has on its disk.
    assert same(client.evaluator.network.state_dict(), start)


# --- geometry, with a network that finds the object without training ---


def threshold_network(**overrides: object) -> dict[str, object]:
    """Overrides that make the probability above 1/2 where the image is above its mean."""
    return {"network_def": {"_target_": "torch.nn.Sigmoid"}, "device": "$torch.device('cpu')", **overrides}


def half_a_volume(shape: tuple[int, int, int]) -> np.ndarray:
    """Label (H, W, D), uint8, below a slanted plane: half of the voxels, and no mirror image of itself."""
    grid = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij")
    return (grid[0] + 0.6 * grid[1] + 0.3 * grid[2] < 0.95).astype(np.uint8)


@pytest.mark.parametrize("spacing, least_dice", [(None, 1.0), ([3.0, 3.0, 3.0], 0.975)], ids=["as-it-is", "resampled"])
def test_masks_of_inference_lie_on_the_object_however_the_volume_lies(workflow, tmp_path, spacing, least_dice):
    permuted = las((2.0, 1.0, 1.5))[[2, 0, 1, 3]]
    affines = {"las": las((1.0, 1.2, 2.0)), "oblique": oblique((1.0, 1.2, 2.0)), "permuted": permuted}
    labels = {name: half_a_volume(shape) for name, shape in zip(affines, SHAPES)}
    for name, label in labels.items():
        save(100 + 200 * label.astype(np.int16), affines[name], tmp_path / "new" / f"{name}.nii.gz")
    overrides = threshold_network(
        spacing=spacing,
        patch_size=[16, 16, 16],
        stride=[8, 8, 8],
        input_dir=str(tmp_path / "new"),
        output_dir=str(tmp_path / "masks"),
    )
    bundle = workflow(INFERENCE, workflow_type="inference", **{**overrides, "handlers#0#_disabled_": True})
    bundle.initialize()
    bundle.run()
    for name, label in labels.items():
        mask = assert_mask_in_the_geometry_of(
            tmp_path / "new" / f"{name}.nii.gz", tmp_path / "masks" / f"{name}_seg.nii.gz", values={0, 1}
        )
        dice = 2 * (mask & label).sum() / (mask.sum() + label.sum())
        assert dice >= least_dice, name


def test_evaluation_list_names_the_cases_that_are_evaluated_also_of_several_processes(tiny):
    for files in ((TRAIN, EVALUATE), (TRAIN, EVALUATE, SEVERAL_EVALUATE)):
        parser = merged(*files)
        parser.update(small(tiny, tiny.parent))
        for chosen, expected in ((None, ["test_0", "test_1"]), ("validation", ["validation_0"])):
            if chosen:
                parser["evaluation_list"] = chosen
            parser.parse(reset=True)
            cases = parser.get_parsed_content("validate#dataset").data
            assert [Path(case["image"]).name.removesuffix(".nii.gz") for case in cases] == expected


def test_evaluation_of_validation_cases_is_in_the_geometry_of_their_labels(workflow, tiny, tmp_path):
    overrides = threshold_network(**small(tiny, tmp_path, spacing=[2.0, 2.0, 2.0], evaluation_list="validation"))
    run_in_process(workflow, TRAIN, EVALUATE, **{**overrides, "validate#handlers#0#_disabled_": True})
    (row,) = rows(tmp_path / "metrics.csv")
    assert (row["case"], row["list"]) == ("validation_0", "validation")
    assert {line["list"] for line in rows(tmp_path / "metrics_summary.csv")} == {"validation"}
    mask, label = nibabel.load(tmp_path / "validation_0_seg.nii.gz"), nibabel.load(tiny / "labels/validation_0.nii.gz")
    assert mask.shape == label.shape and np.allclose(mask.affine, label.affine)
    a, b = np.asarray(mask.dataobj) == 1, np.asarray(label.dataobj) == 1
    assert float(row["dice"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_evaluation_of_a_perfect_segmentation_gives_perfect_metrics(workflow, tiny_copy, tmp_path):
    for path in (tiny_copy / "labels").glob("test_*"):
        affine = nibabel.load(path).affine
        label = half_a_volume(nibabel.load(path).shape)
        save(label, affine, path)
        save(100 + 200 * label.astype(np.int16), affine, tiny_copy / "images" / path.name)
    overrides = threshold_network(**small(tiny_copy, tmp_path))
    run_in_process(workflow, TRAIN, EVALUATE, **{**overrides, "validate#handlers#0#_disabled_": True})
    for row in rows(tmp_path / "metrics.csv"):
        values = [float(value) for key, value in row.items() if key not in ("case", "class", "list")]
        assert values == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
