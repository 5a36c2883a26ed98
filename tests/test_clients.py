"""Tests of the programs that use a bundle without its authors: MONAI Label, MONAI Deploy, federated clients, sharing.

The first two run where their packages are installed and skip elsewhere; what they ask of a bundle (ids, overrides) is
tested without them as well.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from conftest import LABELED, ROOT, SHAPES, blob, las, run_process, save, small
from monai.data import MetaTensor
from monai.fl.client import MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.utils import set_determinism

from scripts.inference import SaveOutputsd
from scripts.networks import DualTaskVNet
from tools.release.bundle import NAME, contents, make_bundle

CLIENTS_PAGE = ROOT / "docs" / "clients.md"
AFFINE = las((1.0, 1.2, 2.0))


@pytest.fixture
def bundle(tmp_path) -> Path:
    """An unpacked bundle as one makes it for clients: a tiny model, and its settings in the configs."""
    source = tmp_path / "source"
    for name in contents(ROOT):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    settings = json.loads((source / "models" / "model.json").read_text())
    assert settings["spacing"] is not None  # what resamples has further steps, which clients have broken before
    settings.update(base_filters=2, patch_size=[16, 16, 16], stride=[8, 8, 8], class_names=["blob"])
    (source / "models" / "model.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    network = DualTaskVNet(base_filters=2, normalization=settings["normalization"])
    torch.save(network.state_dict(), source / "models" / "model.pt")
    with zipfile.ZipFile(make_bundle(tmp_path, root=source, matched=True)) as archive:
        archive.extractall(tmp_path)
    train = tmp_path / NAME / "configs" / "train.json"
    # A tiny learning rate tells training on from the weights apart from beginning anew.
    small_training = {"max_iterations": 2, "log_interval": 1, "learning_rate": 1e-5}
    train.write_text(json.dumps({**json.loads(train.read_text()), **small_training}))
    return tmp_path / NAME


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Iterator[None]:
    """A working directory away from the repository, whose package "scripts" comes back after the test.

    Clients unload exactly that package to load the bundle's own.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def own() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "scripts"]

    kept = {name: sys.modules.pop(name) for name in own()}
    yield
    for name in own():
        del sys.modules[name]
    sys.modules.update(kept)
    set_determinism(seed=None)


def labeled_cases(folder: Path, count: int = 4) -> list[dict[str, str]]:
    cases = []
    for i in range(count):
        image, label = blob(SHAPES[i], seed=i)
        paths = {"image": folder / f"{i}.nii.gz", "label": folder / "labels" / f"{i}.nii.gz"}
        cases.append({"image": save(image, AFFINE, paths["image"]), "label": save(label, AFFINE, paths["label"])})
    return cases


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / "model.pt", weights_only=True)


def expected_mask(bundle: Path, image: str, folder: Path) -> np.ndarray:
    """What ``run inference`` of the bundle gives for one image."""
    (folder / "alone").mkdir()
    shutil.copy(image, folder / "alone" / "case.nii.gz")
    sys.path.insert(0, str(bundle))
    monai.bundle.run(
        run_id="inference",
        config_file=str(bundle / "configs" / "inference.json"),
        logging_file=False,
        bundle_root=str(bundle),
        input_dir=str(folder / "alone"),
        output_dir=str(folder / "expected"),
        device="$torch.device('cpu')",
    )
    sys.path.remove(str(bundle))
    return np.asarray(nibabel.load(folder / "expected" / "case_seg.nii.gz").dataobj)


# --- MONAI Label ---


def assert_trained_from_the_weights_beside_it(bundle: Path, before: dict[str, torch.Tensor]) -> None:
    after = weights(bundle)
    name = "encoder.levels.0.0.0.weight"
    change = (after[name] - before[name]).abs().max()
    assert 0 < change < 0.05 * before[name].abs().max()
    assert not list(bundle.glob("models/*epoch*"))


def test_what_monai_label_overrides_trains_the_shipped_weights_on_its_own_cases(bundle, elsewhere, tmp_path):
    """The overrides of monailabel.tasks.train.bundle of 0.8.5, with its loader in front of the handlers."""
    before = weights(bundle)
    cases = labeled_cases(tmp_path / "studies")
    parser = monai.bundle.ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(bundle / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    overrides = {
        "bundle_root": str(bundle),
        "train#trainer#max_epochs": 1,
        "train#dataset#data": cases[:3],
        "device": "cpu",
        "train#handlers": [loader, *parser["train#handlers"]],
        "validate#dataset#data": cases[3:],
    }
    sys.path.insert(0, str(bundle))
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "train.json"),
        logging_file=False,
        **overrides,
    )
    assert_trained_from_the_weights_beside_it(bundle, before)
    assert (bundle / "models" / "model_best.pt").is_file()  # its validation cases were used


def test_monai_label_trains_on_its_labeled_studies(bundle, elsewhere, tmp_path):
    pytest.importorskip("monailabel", reason="monailabel is not installed (docs/clients.md)")
    from monailabel.tasks.train.bundle import BundleTrainTask

    before = weights(bundle)
    cases = labeled_cases(tmp_path / "studies")
    task = BundleTrainTask(str(bundle), conf={})
    assert task.is_valid()
    request = {
        "model": NAME,
        "max_epochs": 1,
        "device": "cpu",
        "pretrained": True,
        "val_split": 0.3,
        "tracking": "None",
    }
    assert task(request, SimpleNamespace(datalist=lambda: cases)) == {}
    assert_trained_from_the_weights_beside_it(bundle, before)
    # A second training goes on from there and does not find itself finished.
    trained = weights(bundle)
    assert BundleTrainTask(str(bundle), conf={})(request, SimpleNamespace(datalist=lambda: cases)) == {}
    assert_trained_from_the_weights_beside_it(bundle, trained)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_monai_label_segments_as_the_bundle_does(bundle, elsewhere, tmp_path, dropout):
    pytest.importorskip("monailabel", reason="monailabel is not installed (docs/clients.md)")
    from monailabel.tasks.infer.bundle import BundleInferTask

    image = labeled_cases(tmp_path / "studies", 1)[0]["image"]
    task = BundleInferTask(str(bundle), conf={}, dropout=dropout)
    assert task.is_valid()
    assert task.labels == {"blob": 1}
    path, result = task({"image": image, "device": "cpu", "model": NAME})
    mask = nibabel.load(path)
    assert result["label_names"] == {"blob": 1}
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-4)
    assert np.array_equal(np.asarray(mask.dataobj), expected_mask(bundle, image, tmp_path))


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of MONAI Label's own server with the shipped model, as docs/clients.md starts it, and its studies."""
    with serving(tmp_path) as address:
        yield address


@contextmanager
def serving(
    tmp_path: Path, *, change: Callable[[Path], object] = lambda app: None, conf: dict[str, str] | None = None
) -> Iterator[str]:
    """Starts that server with four studies; ``change`` gets the app's folder before, ``conf`` is added."""
    pytest.importorskip("monailabel", reason="monailabel is not installed (docs/clients.md)")
    program = [sys.executable, "-m", "monailabel.main"]  # what its command starts, with the Python of PATH
    apps, studies = tmp_path / "apps", tmp_path / "studies"
    run_process([*program, "apps", "--name", "monaibundle", "--download", "--output", str(apps)]).check_returncode()
    with zipfile.ZipFile(make_bundle(tmp_path, matched=True)) as archive:
        archive.extractall(apps / "monaibundle" / "model")
    train = apps / "monaibundle" / "model" / NAME / "configs" / "train.json"
    # Nothing but its length: else it would train for an hour.
    train.write_text(json.dumps({**json.loads(train.read_text()), "max_iterations": 2, "learning_rate": 1e-5}))
    change(apps / "monaibundle")
    for case in labeled_cases(tmp_path / "cases"):
        studies.mkdir(exist_ok=True)
        shutil.copy(case["image"], studies)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*program, "start_server", "--app", str(apps / "monaibundle"), "--studies", str(studies)]
    for name, value in {"models": NAME, "zoo_source": "local", "sam2": "false", **(conf or {})}.items():
        command += ["--conf", name, value]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answer(url: str, method: str = "GET", **options: object) -> bytes:
    """What a server says, which may still be starting."""
    import requests

    for _ in range(900):
        try:
            response = requests.request(method, url, timeout=300, **options)
        except requests.ConnectionError:
            time.sleep(1)
            continue
        assert response.ok, response.text
        return response.content
    raise TimeoutError(url)


def test_monai_labels_server_infers_takes_a_label_trains_and_infers_with_the_shipped_model(server, tmp_path):
    model = tmp_path / "apps" / "monaibundle" / "model" / NAME
    info = json.loads(answer(f"{server}/info/"))
    assert info["models"][NAME]["labels"] == {"left atrium": 1}
    before = weights(model)

    def infer() -> np.ndarray:
        (tmp_path / "mask.nii.gz").write_bytes(answer(f"{server}/infer/{NAME}?image=0&output=image", "POST"))
        return np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)

    assert np.array_equal(infer(), expected_mask(model, str(tmp_path / "studies" / "0.nii.gz"), tmp_path))
    for number in range(3):
        label = (tmp_path / "cases" / "labels" / f"{number}.nii.gz").read_bytes()
        answer(f"{server}/datastore/label?image={number}", "PUT", files={"label": (f"{number}.nii.gz", label)})
    options = {"max_epochs": 1, "pretrained": True, "val_split": 0.3, "tracking": "None", "device": "cpu"}
    answer(f"{server}/train/{NAME}?run_sync=true", "POST", json=options)
    assert_trained_from_the_weights_beside_it(model, before)
    assert infer().shape == SHAPES[0]


def test_inference_has_the_ids_that_clients_read_and_takes_a_dropout(bundle):
    parser = monai.bundle.ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    ids = ("bundle_root", "device", "network_def", "preprocessing", "postprocessing", "inferer")
    assert [key for key in ids if key not in parser] == []
    parser["network_def"]["dropout"] = 0.2  # MONAI Label, for its epistemic scores
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, DualTaskVNet)
    network.load_state_dict(weights(bundle))  # all of them: else the clients' tests, which run elsewhere, would fail


# --- MONAI Deploy ---


def test_optional_requirements_have_the_pins_of_the_project():
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    project = pins("requirements.txt") | pins("requirements-dev.txt")
    for name in ("requirements-dicom.txt", "docs/deploy/requirements.txt"):
        assert {package: project.get(package, version) for package, version in pins(name).items()} == pins(name)
    assert pins("requirements-dicom.txt").items() < project.items()


@pytest.mark.parametrize("kind", ["pt", "ts"])
def test_monai_deploy_segments_as_the_bundle_does(bundle, elsewhere, tmp_path, kind):
    pytest.importorskip("holoscan", reason="monai-deploy-app-sdk is not installed (docs/clients.md)")
    pytest.importorskip("monai.deploy.core", reason="monai-deploy-app-sdk is not installed (docs/clients.md)")
    from monai.deploy.core import Application, Image, IOType
    from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

    path = labeled_cases(tmp_path / "studies", 1)[0]["image"]
    expected = expected_mask(bundle, path, tmp_path)
    if kind == "ts":
        config = str(bundle / "configs" / "inference.json")
        sys.path.insert(0, str(bundle))
        monai.bundle.ckpt_export(config_file=config, bundle_root=str(bundle))
        sys.path.remove(str(bundle))
    operator = MonaiBundleInferenceOperator(
        Application(),
        app_context=SimpleNamespace(models=None),
        input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
        output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
        bundle_path=bundle,
        name="segmentation",
    )
    volume = nibabel.load(path)
    # What DICOMSeriesToVolumeOperator hands on: voxels as depth, height, width, and an affine.
    spacing = [float(extent) for extent in volume.header.get_zooms()]
    meta = dict(zip(("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing"), spacing))
    image = Image(np.swapaxes(volume.get_fdata(), 0, 2), metadata={**meta, "nifti_affine_transform": volume.affine})
    sent = {}

    def emit(value: object, name: str) -> None:
        sent[name] = value

    def no_path(name: str) -> None:
        raise RuntimeError(name)

    operator.compute(SimpleNamespace(receive=lambda name: image), SimpleNamespace(emit=emit, get=no_path), None)
    mask = np.swapaxes(sent["pred"].asnumpy(), 0, 2)
    assert mask.dtype == np.uint8 and np.array_equal(mask, expected)


def test_an_image_from_memory_is_saved_without_a_folder_of_its_own(tmp_path):
    """As the Deploy SDK calls the bundle: the image has no path, and the bundle has a folder of inputs."""
    mask = MetaTensor(torch.ones(1, 4, 5, 6, dtype=torch.uint8), affine=torch.eye(4))
    SaveOutputsd("pred", tmp_path, root="/data/inputs")({"pred": mask})
    (file,) = tmp_path.iterdir()
    assert np.asarray(nibabel.load(file).dataobj).all()


def test_the_deploy_application_writes_the_mask_of_inference_as_dicom_seg(bundle, tmp_path):
    """docs/deploy/app.py in a process of its own, as docs/deploy/README.md starts it, on an oblique series."""
    pytest.importorskip("holoscan", reason="monai-deploy-app-sdk is not installed (docs/deploy/requirements.txt)")
    pytest.importorskip("monai.deploy.core", reason="monai-deploy-app-sdk is not installed")
    highdicom = pytest.importorskip("highdicom")
    from originals import write_dicom

    turn = (np.cos(0.3), np.sin(0.3), 0.0, -np.sin(0.3), np.cos(0.3), 0.0)
    empty = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "PatientBirthDate", "PatientSex")
    tags = {**dict.fromkeys(empty, ""), "PatientID": "7", "PatientName": "A^B", "FrameOfReferenceUID": "1.2.3"}
    image = blob((24, 22, 10), seed=0)[0].astype(int)
    shape = {"spacing": (0.9, 0.9, 2.5), "directions": turn, "number": lambda k: (k * 3) % 10 + 1}
    affine = write_dicom(tmp_path / "in" / "series", image, tags={**tags, "Modality": "MR"}, **shape)
    write_dicom(tmp_path / "in" / "other", image, tags={**tags, "Modality": "CT"})  # which series.json leaves out
    path = save(image.astype(np.int16), affine, tmp_path / "image.nii.gz")
    options = ["--input_dir", path, "--output_dir", str(tmp_path / "masks")]
    config = ["--config_file", "configs/inference.json"]
    run_process([sys.executable, "-m", "monai.bundle", "run", "inference", *config, *options], cwd=bundle)
    command = [sys.executable, str(ROOT / "docs" / "deploy" / "app.py"), "--model", str(bundle)]
    command += ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    finished = run_process(command, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (file,) = (tmp_path / "out").iterdir()
    seg = highdicom.seg.segread(file)
    assert seg.get_segment_description(1).segment_label == "blob" and seg.FrameOfReferenceUID == "1.2.3"
    volume = seg.get_volume()
    to_voxels = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ affine) @ volume.affine
    found = np.argwhere(volume.array[..., 0]) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    mask = np.asarray(nibabel.load(tmp_path / "masks" / "image_seg.nii.gz").dataobj)
    np.testing.assert_allclose(found, found.round(), atol=1e-3)
    assert mask.any() and sorted(found.round().tolist()) == np.argwhere(mask).tolist()


def test_metadata_names_are_the_keys_of_the_transforms_and_only_pred_comes_out():
    formats = json.loads((ROOT / "configs" / "metadata.json").read_text())["network_data_format"]
    inference = json.loads((ROOT / "configs" / "inference.json").read_text())
    assert list(formats["inputs"]) == [inference["preprocessing"]["transforms"][0]["keys"]] == ["image"]
    assert list(formats["outputs"]) == ["pred"]
    assert inference["postprocessing"]["transforms"][0]["keys"] == "pred"


# --- federated statistics ---


def test_federated_statistics_describe_the_cases_of_training_and_validation(workflow, tiny, tmp_path):
    bundle = workflow("configs/train.json", **small(tiny, tmp_path))
    client = MonaiAlgoStats(bundle_root=str(ROOT), workflow=bundle)
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(tmp_path)})
    histogram = {FlStatistics.HIST_BINS: 10, FlStatistics.HIST_RANGE: [0, 500]}
    statistics = client.get_data_stats(extra=histogram).statistics
    assert statistics["train"][FlStatistics.DATA_COUNT] == LABELED
    assert statistics["eval"][FlStatistics.DATA_COUNT] == 1
    assert [statistics[name][FlStatistics.FAIL_COUNT] for name in ("train", "eval")] == [0, 0]
    shapes = statistics["train"][FlStatistics.DATA_STATS]["image_stats"]["shape"]
    assert np.ravel(shapes["max"]).tolist() == np.max(SHAPES[:LABELED], axis=0).tolist()
    image = nibabel.load(tiny / "images" / "validation_0.nii.gz").get_fdata()
    intensity = statistics["eval"][FlStatistics.DATA_STATS]["image_stats"]["intensity"]
    assert np.ravel(intensity["mean"])[0] == pytest.approx(image.mean(), rel=1e-3)


# --- Hugging Face Hub ---


def patterns() -> list[str]:
    """The ignore patterns of the command in docs/clients.md."""
    (listed,) = re.findall(r"--ignore_patterns \"(\[.*?\])\"", CLIENTS_PAGE.read_text(encoding="utf-8"))
    return json.loads(listed.replace("'", '"'))


def test_upload_of_a_used_bundle_takes_the_bundle_and_nothing_that_using_it_left(bundle, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    published = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    left = (
        "outputs/training_log.csv",
        "outputs/mlruns/mlruns.db",
        "eval/case_seg.nii.gz",
        "data/dataset.json",
        "data/imagesTr/patient.nii.gz",
        "mlruns/0/meta.yaml",
        "scripts/__pycache__/errors.cpython-311.pyc",
        "models/model_best.pt",
        "models/checkpoint.pt",
        ".venv/bin/python",
        ".git/config",
        ".env",
    )
    for name in left:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("left")
    calls = {}

    class DryRun:
        """What MONAI's command asks of the hub; nothing leaves this machine."""

        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, **arguments: object) -> None:
            calls["repo"] = arguments

        def upload_folder(self, *, repo_id: str, folder_path: str, ignore_patterns: list[str]) -> str:
            files = sorted(
                path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()
            )
            calls["files"] = list(hub.utils.filter_repo_objects(files, ignore_patterns=ignore_patterns))
            return repo_id

    monkeypatch.setattr(monai.bundle.scripts.huggingface_hub, "HfApi", DryRun)
    monai.bundle.push_to_hf_hub(
        repo="someone/bundle", name=NAME, bundle_dir=str(bundle.parent), ignore_patterns=patterns()
    )
    assert calls["repo"] == {"repo_id": "someone/bundle", "private": True, "exist_ok": True}
    assert set(calls["files"]) == published
