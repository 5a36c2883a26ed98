"""Tests of the dual-task networks over MONAI's: the same as MONAI's, heads, extents, export, and a few iterations."""

import csv
import importlib
import json
import math
import re
import sys

import pytest
import torch
from conftest import ROOT, real_data, small
from monai.bundle import ConfigParser
from monai.networks.blocks import UpSample
from monai.networks.nets import DynUNet, SegResNet
from torch import nn

from scripts.networks import DualTaskDynUNet, DualTaskSegResNet

TRAIN, HIPPOCAMPUS = "configs/train.json", "configs/data/hippocampus.json"
OVERLAYS = {name: f"configs/networks/{name}.json" for name in ("dynunet", "segresnet")}
NETWORKS = {
    "dynunet": lambda **arguments: DualTaskDynUNet(**{"base_filters": 4, **arguments}),
    "segresnet": lambda **arguments: DualTaskSegResNet(**{"base_filters": 4, **arguments}),
}
HEADS = {"logits_phi", "distance_phi", "logits_psi", "distance_psi"}
each_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image(*, channels=1):
    return torch.randn(2, channels, 32, 16, 16)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# The paper's Table 12 has 48.36 million for nnU-Net. A further class adds 4 heads of `base_filters` + 1.
@pytest.mark.parametrize(
    "build, expected",
    [
        (lambda: DualTaskDynUNet(levels=6, upsampling_psi="transposed"), 48_355_940),
        (DualTaskDynUNet, 23_721_284),
        (lambda: DualTaskDynUNet(num_classes=2), 23_721_284 + 4 * 33),
        (DualTaskSegResNet, 5_045_604),
        (lambda: DualTaskSegResNet(in_channels=2), 5_045_604 + 27 * 16),
    ],
)
def test_parameters(build, expected):
    assert parameters(build()) == expected


def test_parameters_are_monais_encoder_two_of_its_decoders_and_the_heads():
    whole = DynUNet(3, 1, 1, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=[32, 64, 128, 256, 320])
    decoder = parameters(whole.upsamples)
    transposed = sum(parameters(up.transp_conv) for up in whole.upsamples)
    pointwise = sum(c * f + f for c, f in ((320, 256), (256, 128), (128, 64), (64, 32)))
    encoder = parameters(nn.ModuleList([whole.input_block, whole.downsamples, whole.bottleneck]))
    assert parameters(DualTaskDynUNet()) == encoder + decoder + (decoder - transposed + pointwise) + 4 * 33


def assert_logits_are_those_of(whole, network, name, x):
    with torch.no_grad():
        torch.testing.assert_close(network.forward_heads(x)[name], whole.eval()(x), atol=1e-4, rtol=1e-4)


def test_phi_of_the_dynunet_computes_what_monais_dynunet_computes():
    network, x = DualTaskDynUNet(2, 3, 4).eval(), image(channels=2)
    whole = DynUNet(3, 2, 3, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=[4, 8, 16, 32, 40])
    for block, level in zip(
        [whole.input_block, *whole.downsamples, whole.bottleneck], network.encoder.levels, strict=True
    ):
        block.load_state_dict(level.state_dict())
    whole.upsamples.load_state_dict(network.decoder_phi.levels.state_dict())
    whole.output_block.conv.conv.load_state_dict(network.segmentation_head_phi.state_dict())
    assert_logits_are_those_of(whole, network, "logits_phi", x)


@pytest.mark.parametrize("decoder, mode", [("phi", "deconv"), ("psi", "nontrainable")])
def test_decoders_of_the_segresnet_compute_what_monais_segresnet_computes(decoder, mode):
    network, x = DualTaskSegResNet(2, 3, 8).eval(), image(channels=2)
    whole = SegResNet(init_filters=8, in_channels=2, out_channels=3, upsample_mode=mode)
    own = getattr(network, f"decoder_{decoder}")
    whole.convInit.load_state_dict(network.encoder.stem.state_dict())
    whole.down_layers.load_state_dict(network.encoder.levels.state_dict())
    whole.up_samples.load_state_dict(own.upsamplings.state_dict())
    whole.up_layers.load_state_dict(own.levels.state_dict())
    whole.conv_final[:2].load_state_dict(own.normalization.state_dict())
    whole.conv_final[2].conv.load_state_dict(getattr(network, f"segmentation_head_{decoder}").state_dict())
    assert_logits_are_those_of(whole, network, f"logits_{decoder}", x)


@each_network
def test_phi_upsamples_with_transposed_convolutions_and_psi_by_interpolation(build):
    network = build()
    kinds = {
        name: {
            kind: sum(isinstance(module, kind) for module in decoder.modules())
            for kind in (nn.ConvTranspose3d, nn.Upsample)
        }
        for name, decoder in (("phi", network.decoder_phi), ("psi", network.decoder_psi))
    }
    upsamplings = len(network.decoder_phi.levels)
    assert kinds["phi"] == {nn.ConvTranspose3d: upsamplings, nn.Upsample: 0}
    assert kinds["psi"] == {nn.ConvTranspose3d: 0, nn.Upsample: upsamplings}
    assert all(m.mode == "trilinear" for m in network.decoder_psi.modules() if isinstance(m, nn.Upsample))
    assert sum(isinstance(m, UpSample) for m in network.decoder_psi.modules()) == upsamplings


@each_network
@pytest.mark.parametrize("in_channels, num_classes", [(1, 1), (2, 3)])
def test_heads_in_training_and_mean_probability_in_evaluation(build, in_channels, num_classes):
    network, x = build(in_channels=in_channels, num_classes=num_classes), image(channels=in_channels)
    heads = network(x)
    assert set(heads) == HEADS
    assert all(head.shape == (2, num_classes, 32, 16, 16) for head in heads.values())
    assert all(heads[f"distance_{decoder}"].abs().max() <= 1 for decoder in ("phi", "psi"))
    heads = network.eval().forward_heads(x)
    expected = (torch.sigmoid(heads["logits_phi"]) + torch.sigmoid(heads["logits_psi"])) / 2
    torch.testing.assert_close(network(x), expected)


@each_network
@torch.no_grad()
def test_network_scripts_and_traces(build):
    network, x = build(dropout=0.0), image()
    scripted, expected = torch.jit.script(network), network(x)
    heads = scripted(x)
    assert set(heads) == set(expected)
    for name in expected:
        torch.testing.assert_close(heads[name], expected[name], atol=1e-4, rtol=1e-4)
    network.eval(), scripted.eval()
    torch.testing.assert_close(scripted(x), network(x))
    traced, other = torch.jit.trace(network, x, check_trace=False), torch.randn(1, 1, 16, 48, 32)
    torch.testing.assert_close(traced(other), network(other))


@each_network
def test_gradient_reaches_every_parameter(build):
    network = build(dropout=0.0)
    sum((head * torch.randn_like(head)).sum() for head in network(image()).values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    dead = [name for name, p in network.named_parameters() if p.grad.abs().max() == 0]
    assert dead == []


@each_network
def test_dropout_is_at_the_bottleneck_and_before_the_heads_and_off_in_evaluation(build):
    network, x = build(base_filters=8), image()
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout3d)] == [0.5] * 3
    features = [network.encoder(x) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(features[0][:-1], features[1][:-1]))
    assert not torch.equal(features[0][-1], features[1][-1])
    result = network.decoder_phi(features[0])
    dropped = result.abs().amax((2, 3, 4)) == 0
    assert 0 < dropped.float().mean() < 1
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    "network, size, text",
    [
        ("dynunet", (24, 32, 32), r"multiple of 16 and the input has \[24, 32, 32\]"),
        ("dynunet", (16, 16, 16), r"\[16, 16, 16\], one voxel at the coarsest level, .*at least one extent of 32"),
        ("segresnet", (12, 16, 16), r"multiple of 8 and the input has \[12, 16, 16\]"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_extents_that_do_not_fit_are_refused(network, size, text, training):
    with pytest.raises(ValueError, match=text):
        NETWORKS[network]().train(training)(torch.zeros(1, 1, *size))


def test_six_levels_need_multiples_of_32():
    network = DualTaskDynUNet(base_filters=2, levels=6).eval()
    with pytest.raises(ValueError, match="multiple of 32"):
        network(torch.zeros(1, 1, 32, 48, 32))
    assert network(torch.zeros(1, 1, 32, 64, 32)).shape == (1, 1, 32, 64, 32)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"levels": 2}, "levels is 2; a DynUNet has at least 3"),
        ({"upsampling_psi": "nearest"}, "upsampling_psi is 'nearest'; an upsampling is one of transposed, trilinear"),
    ],
)
def test_dynunet_refuses_arguments_out_of_range(arguments, text):
    with pytest.raises(ValueError, match=text):
        DualTaskDynUNet(**arguments)


# --- through the bundle ---


def train(workflow, output, *files, **overrides):
    """Trains in this process; returns the log's rows and the weights, which every term must have left finite."""
    bundle = workflow(TRAIN, *files, **{"base_filters": 4, **overrides})
    bundle.initialize()
    start = {name: p.detach().clone() for name, p in bundle.parser.get_parsed_content("network_def").named_parameters()}
    bundle.run()
    bundle.finalize()
    with (output / "training_log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    state = torch.load(output / "models" / "model.pt", weights_only=True)
    assert [name for name, value in start.items() if torch.equal(state[name], value)] == []
    assert all(math.isfinite(float(value)) for row in log for value in row.values() if value)
    return log, state


@each_overlay
def test_dbisl_trains_it_on_small_volumes_and_its_weights_segment(workflow, tiny, tmp_path, overlay):
    overrides = small(tiny, tmp_path, patch_size=[32, 16, 16], stride=[16, 8, 8], max_iterations=2, base_filters=4)
    log, _ = train(workflow, tmp_path, overlay, **overrides)
    assert len(log) == 2 and float(log[-1]["consistency_s2r"]) > 0
    bundle = workflow(
        "configs/inference.json",
        str(tmp_path / "models" / "model.json"),
        workflow_type="inference",
        output_dir=str(tmp_path / "masks"),
        ckpt_path=str(tmp_path / "models" / "model.pt"),
        dataset__data=[{"image": str(tiny / "images" / "test_0.nii.gz")}],
        device="$torch.device('cpu')",
        save_distance=True,
    )
    bundle.initialize()
    bundle.run()
    assert {path.name for path in (tmp_path / "masks").glob("*.nii.gz")} == {
        "test_0_seg.nii.gz",
        "test_0_distance.nii.gz",
    }


@each_overlay
def test_labels_only_trains_it_too(workflow, tiny, tmp_path, overlay):
    overrides = small(tiny, tmp_path, patch_size=[32, 16, 16], max_iterations=1, base_filters=4)
    # Behind the method, whose network it replaces; the distance heads stay as they are but for the weight decay.
    bundle = workflow(TRAIN, "configs/methods/supervised.json", overlay, **overrides)
    bundle.initialize()
    bundle.run()
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert "distance_head_phi.weight" in state
    with (tmp_path / "training_log.csv").open(newline="") as file:
        assert list(csv.DictReader(file))[0]["supervised_segmentation"]


@each_overlay
def test_dbisl_trains_it_on_hippocampus(workflow, tmp_path, overlay):
    log, state = train(
        workflow,
        tmp_path,
        HIPPOCAMPUS,
        overlay,
        dataset_dir=str(real_data("hippocampus")),
        splits={"training": [0, 8], "validation": [160, 161], "test": [180, 181]},
        output_dir=str(tmp_path),
        ckpt_dir=str(tmp_path / "models"),
        max_iterations=4,
        log_interval=1,
        device="$torch.device('cpu')",
    )
    assert len(log) == 4
    assert state["segmentation_head_psi.weight"].shape[0] == 2
    settings = json.loads((tmp_path / "models" / "model.json").read_text())
    assert (settings["base_filters"], settings["patch_size"]) == (4, [32, 48, 32])


# The others need a network of their own.
FITTING = {
    *("ad_mt", "bcp", "cps", "dbisl", "dbisl_mixed", "dbisl_paper", "entropy_minimization", "mc_net", "mean_teacher"),
    *("supervised", "ua_mt", "unimatch"),
}


@each_overlay
@pytest.mark.parametrize("method", sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.json")))
def test_methods_train_it_or_say_which_head_it_lacks(method, overlay, tmp_path):
    parser = ConfigParser()
    parser.read_config([str(ROOT / TRAIN), str(ROOT / f"configs/methods/{method}.json"), str(ROOT / overlay)])
    parser.update({"base_filters": 2, "num_classes": 2, "device": "$torch.device('cpu')"})
    network = parser.get_parsed_content("network").train()
    objective = parser.get_parsed_content("objective")
    images = torch.randn(4, 1, 32, 16, 16)
    labeled = {"image": images[:2], "label": torch.randint(0, 3, (2, 1, 32, 16, 16)).float()}

    def loss():
        targets = objective.views(labeled, {"image": images[2:]}, 0)
        return objective(objective.predict(network, targets["image"]), targets, 0)

    if method in FITTING:
        assert loss().total.isfinite()
    else:
        with pytest.raises(ValueError, match="network has .*logits_phi"):
            loss()


@each_network
@pytest.mark.parametrize(
    "kind, layer", [("batch", "BatchNorm3d"), ("group", "GroupNorm"), ("instance", "InstanceNorm3d")]
)
def test_normalization_is_that_of_the_argument_everywhere(build, kind, layer):
    network = build(normalization=kind)
    assert {type(m).__name__ for m in network.modules() if "Norm" in type(m).__name__} == {layer}
    assert parameters(network) == parameters(build())


def test_the_whole_bundle_gives_it_the_normalization_of_the_command_line():
    parser = ConfigParser()
    parser.read_config([str(ROOT / TRAIN), str(ROOT / OVERLAYS["dynunet"])])
    assert parser["normalization"] == "instance"
    parser.update({"base_filters": 2, "normalization": "batch"})
    assert any(isinstance(m, nn.BatchNorm3d) for m in parser.get_parsed_content("network_def").modules())


def test_one_voxel_at_the_coarsest_level_is_enough_for_group_normalization():
    assert (
        DualTaskDynUNet(base_filters=2, normalization="group")(torch.zeros(1, 1, 16, 16, 16))["logits_phi"]
        .isfinite()
        .all()
    )


# --- the documentation ---


def test_backbone_of_the_documentation_trains(workflow, tiny, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "backbone_of_the_docs.py").write_text(snippet, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("backbone_of_the_docs")
    try:
        torch.jit.script(module.MyNetwork())
        overrides = small(tiny, tmp_path, max_iterations=1, base_filters=4)
        train(workflow, tmp_path, **overrides, network_def___target_="backbone_of_the_docs.MyNetwork")
    finally:
        del sys.modules["backbone_of_the_docs"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_parameters_in_the_documentation_are_those_of_the_overlay(name):
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    (count,) = re.findall(rf"^\| `networks/{name}\.json` \|[^|]+\| ([\d,]+) \|", text, flags=re.MULTILINE)
    overlay = json.loads((ROOT / "configs" / "networks" / f"{name}.json").read_text(encoding="utf-8"))
    definition = {key: value for key, value in overlay["network_def"].items() if not str(value).startswith("@")}
    module, cls = definition.pop("_target_").rsplit(".", 1)
    network = getattr(importlib.import_module(module), cls)(base_filters=overlay.get("base_filters", 16), **definition)
    assert parameters(network) == int(count.replace(",", ""))
