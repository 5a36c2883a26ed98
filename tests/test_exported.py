"""Tests of scripts/inference/exported.py, configs/export and configs/runtimes: exports and inference from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, SHAPES, blob, las, run_process, save
from monai.networks.utils import convert_to_onnx, convert_to_torchscript

from scripts.inference import HalfPrecision, OnnxNetwork, Predictor, load_torchscript
from scripts.networks import DualTaskVNet, VNet

INFERENCE = "configs/inference.json"
EXPORT_ARGUMENTS = ROOT / "configs" / "export" / "onnx.json"
# docs/export.md states these: float32 exports differ in the order of sums, float16 ones in rounding.
FLOAT32_TOLERANCE, FLOAT16_TOLERANCE = 2e-5, 1e-2
# A batch and three extents that no export has seen.
OTHER_SHAPE = (3, 1, 48, 16, 32)

each_network = pytest.mark.parametrize("build", [DualTaskVNet, VNet])


def image(shape: tuple[int, ...] = OTHER_SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def make(build=DualTaskVNet, *, filters: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build(base_filters=filters, num_classes=2).train()
    for _ in range(3):  # running statistics that differ from their initial zeros and ones
        network(image((2, 1, 32, 16, 16)))
    return network.eval()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert (actual - expected).abs().max() < tolerance
    assert expected.std() > 3 * tolerance  # else any constant would do


def legacy_onnx(network: torch.nn.Module, path: Path) -> Path:
    """Exports by tracing, in a second; what the command of docs/export.md makes is tested as a process below."""
    axes = json.loads(EXPORT_ARGUMENTS.read_text())["converter_kwargs"]["dynamic_axes"]
    convert_to_onnx(
        network,
        [image((2, 1, 32, 48, 64))],
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={**axes, "pred": axes["image"]},
        filename=str(path),
        use_trace=True,
        dynamo=False,
    )
    return path


# --- TorchScript ---


@each_network
@pytest.mark.parametrize("use_trace", [False, True], ids=["script", "trace"])
@torch.no_grad()
def test_torchscript_gives_the_networks_probabilities_at_any_batch_and_extent(build, use_trace, tmp_path):
    network = make(build)
    path = tmp_path / "model.ts"
    convert_to_torchscript(
        network,
        filename_or_obj=str(path),
        use_trace=use_trace,
        inputs=[image((1, 1, 16, 16, 16))] if use_trace else None,
    )
    assert_near(load_torchscript(path)(image()), network(image()), FLOAT32_TOLERANCE)


@pytest.mark.parametrize("convert", [torch.jit.script, lambda n: torch.jit.trace(n, image())], ids=["script", "trace"])
@torch.no_grad()
def test_torchscript_gives_the_distance_too(convert, tmp_path):
    network = make()
    convert(network).save(str(tmp_path / "model.ts"))
    expected = Predictor([network], maps=["distance"])(image())
    exported = load_torchscript(tmp_path / "model.ts")
    assert_near(Predictor([exported], maps=["distance"])(image()), expected, FLOAT32_TOLERANCE)


def test_missing_and_foreign_torchscript_files_are_named(tmp_path):
    path = tmp_path / "model.ts"
    with pytest.raises(ValueError, match=rf"{path} does not exist"):
        load_torchscript(path)
    torch.save(make().state_dict(), path)
    with pytest.raises(ValueError, match=rf"{path} is not a TorchScript file"):
        load_torchscript(path)


# --- ONNX ---


@each_network
@torch.no_grad()
def test_onnxruntime_gives_the_networks_probabilities_at_any_batch_and_extent(build, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = make(build)
    exported = OnnxNetwork(legacy_onnx(network, tmp_path / "model.onnx"))
    for shape in (OTHER_SHAPE, (1, 1, 16, 16, 16)):
        assert_near(exported(image(shape)), network(image(shape)), FLOAT32_TOLERANCE)
    with pytest.raises(ValueError, match="need the heads, which a OnnxNetwork lacks"):
        Predictor([exported], maps=["distance"])(image())
    channels_last = image().to(memory_format=torch.channels_last_3d)
    assert_near(exported(channels_last), network(image()), FLOAT32_TOLERANCE)


def test_missing_and_foreign_onnx_files_are_named(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=rf"{path} does not exist"):
        OnnxNetwork(path)
    path.write_text("not a model")
    with pytest.raises(ValueError, match=rf"{path} is not an ONNX model"):
        OnnxNetwork(path)


# --- half precision ---


@each_network
@torch.no_grad()
def test_half_precision_takes_and_gives_float32_and_is_near_the_network(build):
    network = make(build)
    expected = network(image())
    half = HalfPrecision(build(base_filters=2, num_classes=2))
    half.load_state_dict(network.state_dict())
    half.eval()
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    probability = half(image())
    assert not torch.equal(probability, expected)
    assert_near(probability, expected, FLOAT16_TOLERANCE)
    assert_near(torch.jit.script(half)(image()), expected, FLOAT16_TOLERANCE)


# --- the commands of docs/export.md, on the shipped weights ---


@pytest.fixture(scope="module")
def shipped() -> torch.nn.Module:
    parser = monai.bundle.ConfigParser()
    parser.read_config(str(ROOT / INFERENCE))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(ROOT / "models" / "model.pt", weights_only=True))
    return network.eval()


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ({}, FLOAT32_TOLERANCE),
        ({"use_trace": True}, FLOAT32_TOLERANCE),
        ({"config_file": [INFERENCE, "configs/export/half.json"], "net_id": "half_network"}, 2 * FLOAT16_TOLERANCE),
    ],
    ids=["script", "trace", "half"],
)
@torch.no_grad()
def test_ckpt_export_of_the_shipped_weights_gives_their_probabilities(
    shipped, monkeypatch, tmp_path, options, tolerance
):
    monkeypatch.chdir(ROOT)
    monai.bundle.ckpt_export(**{"config_file": INFERENCE, "filepath": str(tmp_path / "model.ts"), **options})
    shape = (2, 1, 48, 32, 16)
    exported = load_torchscript(tmp_path / "model.ts")
    assert_near(exported(image(shape)), shipped(image(shape)), tolerance)
    extra = {"metadata.json": "", "inference.json": ""}
    torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
    assert json.loads(extra["metadata.json"])["network_data_format"]
    assert (
        json.loads(extra["inference.json"])["network_def"] == json.loads((ROOT / INFERENCE).read_text())["network_def"]
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "options, tolerance",
    [
        ([], FLOAT32_TOLERANCE),
        (
            ["--config_file", f"['{INFERENCE}','configs/export/half.json']", "--net_id", "half_network"],
            FLOAT16_TOLERANCE,
        ),
    ],
    ids=["float32", "half"],
)
@torch.no_grad()
def test_onnx_export_by_its_command_gives_the_shipped_probabilities(shipped, tmp_path, options, tolerance):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    command = ["onnx_export", "--args_file", "configs/export/onnx.json", "--filepath", str(path), *options]
    finished = run_process([sys.executable, "-m", "monai.bundle", *command])
    assert finished.returncode == 0, finished.stderr
    exported = OnnxNetwork(path)
    for shape in ((1, 1, 16, 16, 16), (3, 1, 48, 32, 16)):
        assert_near(exported(image(shape)), shipped(image(shape)), tolerance)


# --- inference from the three kinds of file ---


def segment(workflow, folder: Path, *files: str, **overrides: object) -> np.ndarray:
    """Probabilities of one volume by inference.json with overlays."""
    settings = {
        "base_filters": 2,
        "normalization": "batch",
        "num_classes": 2,
        "class_names": ["a", "b"],
        "patch_size": [16, 16, 16],
        "stride": [8, 8, 8],
        "spacing": None,
        "input_dir": str(folder / "new"),
        "output_dir": str(folder / Path(files[-1]).stem),
        "save_probability": True,
        "device": "$torch.device('cpu')",
    }
    bundle = workflow(*files, workflow_type="inference", **{**settings, **overrides})
    bundle.initialize()
    assert bundle.check_properties() == []
    bundle.run()
    bundle.finalize()
    return np.asarray(nibabel.load(folder / Path(files[-1]).stem / "case_probability.nii.gz").dataobj)


def test_inference_runs_from_pt_ts_and_onnx_by_config_with_the_same_result(workflow, tmp_path):
    network = make()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    save(blob(SHAPES[0], seed=5)[0], las((1.0, 1.2, 2.0)), tmp_path / "new" / "case.nii.gz")
    expected = segment(workflow, tmp_path, INFERENCE, ckpt_path=str(tmp_path / "model.pt"))
    assert 0 <= expected.min() and expected.std() > 1e-3
    runtimes = {"configs/runtimes/torchscript.json": tmp_path / "model.ts"}
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        print("onnx and onnxruntime are not installed: not tested")
    else:
        runtimes["configs/runtimes/onnx.json"] = legacy_onnx(network, tmp_path / "model.onnx")
    for overlay, path in runtimes.items():
        probability = segment(workflow, tmp_path, INFERENCE, overlay, ckpt_path=str(path))
        np.testing.assert_allclose(probability, expected, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "runtimes").glob("*.json")), ids=lambda path: path.stem)
def test_runtime_overlay_says_what_it_is_and_sets_only_ids_of_inference_json(path):
    content = json.loads(path.read_text())
    assert len(content.pop("about")) > 20
    assert [key for key in content if key not in json.loads((ROOT / INFERENCE).read_text())] == []
