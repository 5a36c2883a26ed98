"""Tests of Dual Networks: the two streams, every term against float64 numpy, gradients, and its overlays."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, small, write_dataset
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import DualNetworksObjective
from scripts.methods.dual_networks import above_percentile, contrastive_loss, joint_label
from scripts.networks import DualNetworks, VNet

TRAIN, METHOD = "configs/train.json", "configs/methods/dual_networks.json"
TERMS = DualNetworksObjective.TERMS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image(*, channels=1):
    return torch.randn(2, channels, 32, 16, 16)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# --- the network ---


def test_streams_have_the_papers_parameters():
    network = DualNetworks()
    assert parameters(network.stream_v) == 9_448_866 == parameters(VNet(num_classes=2))
    # By hand: the stem 343 * 16; stages of 27 c (c_in + (2 n - 1) c) + c c_in weights; two numbers a normalised
    # channel; the V-Net's decoder with its head.
    stages = [(16, 32, 3), (32, 64, 4), (64, 128, 6), (128, 256, 3)]
    weights = 343 * 16 + sum(27 * c * (c_in + (2 * n - 1) * c) + c * c_in for c_in, c, n in stages)
    normalised = 2 * (16 + sum((2 * n + 1) * c for _, c, n in stages))
    assert parameters(network.stream_r) == weights + normalised + 2_071_970 == 17_930_354


def test_base_filters_scale_both_streams():
    for stream in ("stream_v", "stream_r"):
        large, small_one = (parameters(getattr(DualNetworks(base_filters=n), stream)) for n in (8, 4))
        assert large / small_one == pytest.approx(4, rel=0.02)


def normalised(x, norm):
    shape = (1, -1, 1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / torch.sqrt(norm.running_var.view(shape) + 1e-5)
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def test_resnet_stream_computes_what_a_functional_resnet_34_computes():
    network = DualNetworks(base_filters=2).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    encoder, x = network.stream_r.encoder, image()
    stem, norm, _ = encoder.levels[0]
    features = [F.relu(normalised(F.conv3d(x, stem.weight, padding=3), norm))]
    for stage in encoder.levels[1:]:
        y = features[-1]
        for number, block in enumerate(stage):
            stride = 2 if number == 0 else 1
            out = F.relu(normalised(F.conv3d(y, block.conv1.weight, stride=stride, padding=1), block.bn1))
            out = normalised(F.conv3d(out, block.conv2.weight, padding=1), block.bn2)
            if number == 0:
                y = normalised(F.conv3d(y, block.downsample[0].weight, stride=2), block.downsample[1])
            y = F.relu(out + y)
        features.append(y)
    assert [len(stage) for stage in encoder.levels[1:]] == [3, 4, 6, 3]
    for level, (computed, expected) in enumerate(zip(encoder(x), features, strict=True)):
        assert computed.shape == (2, 2 * 2**level, 32 // 2**level, 16 // 2**level, 16 // 2**level)
        torch.testing.assert_close(computed, expected, atol=1e-4, rtol=1e-4)


def test_v_stream_is_the_v_net_of_the_other_methods():
    network, single = DualNetworks(base_filters=2, num_classes=2).eval(), VNet(1, 2, 2, activation="softmax").eval()
    single.load_state_dict(network.stream_v.state_dict())
    x = image()
    torch.testing.assert_close(network.forward_heads(x)["logits_v"], single.forward_heads(x)["logits"])


@pytest.mark.parametrize("in_channels, num_classes", [(1, 1), (2, 3)])
def test_training_gives_logits_and_features_and_evaluation_the_mean_foreground_probability(in_channels, num_classes):
    network, x = DualNetworks(in_channels, num_classes, 2), image(channels=in_channels)
    maps = {name: head.shape for name, head in network(x).items()}
    assert maps == {
        **dict.fromkeys(("logits_v", "logits_r"), (2, num_classes + 1, 32, 16, 16)),
        **dict.fromkeys(("features_v", "features_r"), (2, 2, 32, 16, 16)),
    }
    heads = network.eval().forward_heads(x)
    assert set(heads) == {"logits_v", "logits_r"}
    expected = sum(head.exp()[:, 1:] / head.exp().sum(1, keepdim=True) for head in heads.values()) / 2
    torch.testing.assert_close(network(x), expected)


@torch.no_grad()
def test_network_scripts_and_traces():
    network, x = DualNetworks(base_filters=2, num_classes=2, dropout=0.0), image()
    scripted = torch.jit.script(network)
    expected = network(x)
    heads = scripted(x)
    assert set(heads) == set(expected)
    for name in expected:
        torch.testing.assert_close(heads[name], expected[name], atol=1e-4, rtol=1e-4)
    network.eval(), scripted.eval()
    torch.testing.assert_close(scripted(x), network(x))
    torch.testing.assert_close(torch.jit.trace(network, x, check_trace=False)(x), network(x))


def test_features_are_those_before_the_dropout_of_the_head():
    network, x = DualNetworks(base_filters=4), image()
    first, second = network(x), network(x)
    assert torch.equal(first["features_r"], second["features_r"])  # the ResNet has no other dropout
    assert not torch.equal(first["logits_r"], second["logits_r"])
    assert not torch.equal(first["features_v"], second["features_v"])  # that of the bottleneck
    network.stream_v.encoder.dropout.p = 0.0
    assert torch.equal(network(x)["features_v"], network(x)["features_v"])


def test_convolutions_start_kaiming_normal():
    network = DualNetworks(base_filters=8)
    for weight in (
        network.stream_v.encoder.levels[4][1][0][0].weight,
        network.stream_r.encoder.levels[4][1].conv1.weight,
    ):
        assert weight.shape == (128, 128, 3, 3, 3)
        assert weight.std().item() == pytest.approx((2 / (128 * 27)) ** 0.5, rel=0.01)


def test_every_stream_trains_its_own_weights_alone():
    network = DualNetworks(base_filters=2, dropout=0.0)
    heads = network(image())
    for own, other in (("v", "r"), ("r", "v")):
        network.zero_grad()
        (heads[f"logits_{own}"] * torch.randn(32, 16, 16)).sum().backward(retain_graph=True)
        assert all(p.grad is not None for p in getattr(network, f"stream_{own}").parameters())
        assert all(p.grad is None for p in getattr(network, f"stream_{other}").parameters())


@pytest.mark.parametrize(
    "shape, text", [((1, 1, 24, 16, 16), r"multiple of 16 and the input has"), ((1, 2, 16, 16, 16), "set in_channels")]
)
def test_input_that_does_not_fit_is_refused(shape, text):
    with pytest.raises(ValueError, match=text):
        DualNetworks(base_filters=2)(torch.zeros(shape))


# --- the terms, against float64 numpy ---

SIZE = (4, 4, 4)


def example(num_classes, *, labeled=2, batch=4, scale=2.0):
    """Heads whose second stream is the worse one on the labeled crops, and the label values (labeled, 1, ...)."""
    label = torch.randint(0, num_classes + 1, (labeled, 1, *SIZE))
    heads = {f"logits_{s}": torch.randn(batch, num_classes + 1, *SIZE) * scale for s in ("v", "r")}
    heads["logits_v"][:labeled] += 2 * F.one_hot(label[:, 0], num_classes + 1).movedim(-1, 1)
    heads.update({f"features_{s}": torch.rand(batch, 5, *SIZE) for s in ("v", "r")})
    return {name: head.requires_grad_() for name, head in heads.items()}, label.float()


def compute(heads, label, num_classes, **arguments):
    objective = DualNetworksObjective(LabelCoding(num_classes), **arguments)
    return objective(heads, {"label": label}, 0).terms


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def arrays(heads, label):
    heads = {name: head.detach().numpy().astype(np.float64) for name, head in heads.items()}
    return heads, label[:, 0].numpy().astype(int)


def dice(p, label):
    losses = []
    for c in range(1, p.shape[1]):
        y = label == c
        losses.append(1 - (2 * p[:, c][y].sum() + 1e-5) / ((p[:, c] ** 2).sum() + y.sum() + 1e-5))
    return np.mean(losses)


def own_class(p, label):
    return np.take_along_axis(p, label[:, None], 1)[:, 0]


def reference(heads, label):
    """The six terms voxel by voxel, written from the definitions and not from the code."""
    count = len(label)
    v, r = softmax(heads["logits_v"]), softmax(heads["logits_r"])
    terms = dict.fromkeys(TERMS, 0.0)
    for p in (v[:count], r[:count]):
        terms["supervised"] += -np.log(own_class(p, label)).mean() + dice(p, label)
        errors = []
        for b, c, *voxel in np.ndindex(count, p.shape[1] - 1, *SIZE):
            at = (b, c + 1, *voxel)
            if (v[at] >= 0.6) != (r[at] >= 0.6):
                errors.append((p[at] - (label[(b, *voxel)] == c + 1)) ** 2)
        assert len(errors) > 5
        terms["mistake"] += np.mean(errors)
    kl = (v * np.log(v / r)).sum(1)
    terms["uncertainty"] = (np.exp(-kl) * -np.log(own_class(r, v.argmax(1)))).mean() + kl.mean()
    cos = (v * r).sum(1) / np.sqrt((v**2).sum(1) * (r**2).sum(1))
    terms["cosine"] = (1 - cos).mean()

    u, w = v[count:], r[count:]
    entropies = [-(p * np.log(p)).sum(1) for p in (u, w)]
    limits = [np.sort(e, axis=None)[int(round(0.2 * e.size)) - 1] for e in entropies]
    uncertain = (entropies[0] > limits[0]) & (entropies[1] > limits[1])
    pseudo_label = np.zeros(uncertain.shape, int)
    for at in np.ndindex(*uncertain.shape):
        votes = [(p[(at[0], slice(None), *at[1:])].max(), p[(at[0], slice(None), *at[1:])].argmax()) for p in (u, w)]
        votes = [vote for vote in votes if vote[1] > 0]
        pseudo_label[at] = max(votes)[1] if votes else 0
    assert 0.2 < (~uncertain).mean() < 0.5
    terms["pseudo"] = sum(-np.log(own_class(p, pseudo_label))[~uncertain].mean() for p in (u, w))

    learner, name = (w, "features_r") if dice(r[:count], label) > dice(v[:count], label) else (u, "features_v")
    features = np.moveaxis(heads[name][count:], 1, -1)
    prototypes = []
    for c in range(u.shape[1]):
        mean = features[~uncertain & (pseudo_label == c)].mean(0)
        prototypes.append(mean / np.linalg.norm(mean))
        drawn = features[uncertain & (learner.argmax(1) == c)]
        unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        terms["contrastive"] += np.linalg.norm(unit - prototypes[-1], axis=1).mean()
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(prototypes) for b in prototypes[i + 1 :]]
    terms["contrastive"] -= np.mean(pairs)
    return terms


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("term", TERMS)
def test_term_equals_the_float64_reference(term, num_classes):
    heads, label = example(num_classes)
    expected = reference(*arrays(heads, label))[term]
    assert compute(heads, label, num_classes)[term].item() == pytest.approx(expected, rel=1e-4)


def test_uncertainty_of_one_voxel_by_hand():
    # v = (1/4, 3/4), r = (1/2, 1/2): KL = log 2 - H(v), CE(r, foreground) = log 2.
    heads = {"logits_v": torch.tensor([0.25, 0.75]).log(), "logits_r": torch.zeros(2)}
    heads = {name: head.view(1, 2, 1, 1, 1) for name, head in heads.items()}
    weights = {term: 0 for term in TERMS if term not in ("uncertainty", "cosine")}
    terms = compute(heads, torch.ones(1, 1, 1, 1, 1), 1, weights=weights)
    kl = np.log(2) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75)
    assert terms["uncertainty"].item() == pytest.approx(np.exp(-kl) * np.log(2) + kl, rel=1e-5)
    assert terms["cosine"].item() == pytest.approx(1 - 0.5 / (np.sqrt(0.625) * np.sqrt(0.5)), rel=1e-4)


def test_joint_label_is_foreground_where_either_is_and_of_the_more_confident_one():
    a = torch.tensor([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.4, 0.6, 0.0], [0.1, 0.8, 0.1]])
    b = torch.tensor([[0.8, 0.1, 0.1], [0.9, 0.0, 0.1], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
    a, b = (p.T.reshape(1, 3, 4, 1, 1) for p in (a, b))
    assert joint_label(a, b).flatten().tolist() == [0, 1, 2, 1]
    assert joint_label(b, a).flatten().tolist() == [0, 1, 2, 1]


def test_voxels_at_the_percentile_are_not_above_it():
    assert above_percentile(torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0]), 20).tolist() == [False] * 4 + [True]
    assert above_percentile(torch.arange(10.0), 20).tolist() == [False] * 2 + [True] * 8


def features_of(*vectors):
    return torch.tensor(vectors, dtype=torch.float32).T.reshape(1, 2, -1, 1, 1)


def test_contrastive_loss_of_four_voxels_by_hand():
    # Prototypes (1, 0) and (0, 1); the uncertain voxel of class 1 is at 90 degrees to its prototype.
    features = features_of((2, 0), (4, 0), (0, 3), (0.5, 0))
    classes = torch.tensor([0, 0, 1, 1]).reshape(1, 4, 1, 1)
    uncertain = torch.tensor([False, False, False, True]).reshape(1, 4, 1, 1)
    assert contrastive_loss(features, classes, uncertain, 2).item() == pytest.approx(2**0.5 - 2**0.5, abs=1e-6)
    # Class 2 is nowhere. Without the reliable voxel of class 1 there is neither attraction nor separation.
    assert contrastive_loss(features, classes, uncertain, 3).item() == pytest.approx(0, abs=1e-6)
    uncertain[0, 2] = True
    assert contrastive_loss(features, classes, uncertain, 2).item() == 0


def test_contrastive_loss_draws_uncertain_features_to_prototypes_and_prototypes_apart():
    features = features_of((2, 1), (1, 3), (1, 1.5)).requires_grad_()
    classes = torch.tensor([0, 1, 0]).reshape(1, 3, 1, 1)
    uncertain = torch.tensor([False, False, True]).reshape(1, 3, 1, 1)
    contrastive_loss(features, classes, uncertain, 2).backward()

    def angle(x):
        return np.degrees(np.arctan2(*x.detach().reshape(2, 3).numpy()[::-1]))

    before, after = angle(features), angle(features - 0.1 * features.grad)
    assert after[0] < before[0] and after[1] > before[1]  # prototypes at 27 and 72 degrees, apart
    assert after[2] < before[2]  # from 56 degrees towards the prototype at 27
    # Reliable features feel the other prototype alone: without it, nothing.
    features.grad = None
    contrastive_loss(features, torch.zeros_like(classes), uncertain, 2).backward()
    assert features.grad.flatten(2)[0, :, :2].abs().max() == 0
    assert features.grad.flatten(2)[0, :, 2].abs().max() > 0


def test_gradient_of_features_that_vanish_stays_bounded():
    features = features_of((1, 0), (0, 1), (0, 0), (1e-12, 0)).requires_grad_()
    classes = torch.tensor([0, 1, 0, 1]).reshape(1, 4, 1, 1)
    uncertain = torch.tensor([False, False, True, True]).reshape(1, 4, 1, 1)
    contrastive_loss(features, classes, uncertain, 2).backward()
    assert features.grad.isfinite().all() and features.grad.abs().max() <= 1000


# --- what receives gradient ---


@pytest.mark.parametrize(
    "term, receives",
    [
        ("supervised", {"logits_v": "labeled", "logits_r": "labeled"}),
        ("mistake", {"logits_v": "labeled", "logits_r": "labeled"}),
        ("uncertainty", {"logits_r": "all"}),
        ("cosine", {"logits_v": "all", "logits_r": "all"}),
        ("pseudo", {"logits_v": "unlabeled", "logits_r": "unlabeled"}),
        ("contrastive", {"features_r": "unlabeled"}),
    ],
)
def test_term_gives_gradient_to_its_crops_and_heads_and_to_no_others(term, receives):
    heads, label = example(2)
    compute(heads, label, 2)[term].backward()
    crops = {"labeled": [True, True, False, False], "unlabeled": [False, False, True, True], "all": [True] * 4}
    touched = {
        name: [bool(crop.abs().max() > 0) for crop in head.grad]
        for name, head in heads.items()
        if head.grad is not None and head.grad.abs().max() > 0
    }
    assert touched == {name: crops[which] for name, which in receives.items()}


def test_features_of_the_stream_that_is_worse_on_the_labeled_crops_learn():
    heads, label = example(1)
    swapped = {name: heads[name[:-1] + ("r" if name.endswith("v") else "v")] for name in heads}
    for given, learner in ((heads, "features_r"), (swapped, "features_v")):
        given[learner].grad = None
        compute(given, label, 1)["contrastive"].backward()
        assert given[learner].grad.abs().max() > 0


def test_terms_of_unlabeled_crops_are_absent_without_them():
    heads, label = example(1, batch=2)
    assert set(compute(heads, label, 1)) == {"supervised", "mistake", "uncertainty", "cosine"}


def test_saturated_streams_that_agree_give_finite_terms_and_gradients():
    heads, label = example(2, scale=500.0)
    terms = compute(heads, label, 2)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(head.grad.isfinite().all() for head in heads.values() if head.grad is not None)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"confidence": 1.0}, "confidence is 1.0; it is a probability from 0.5"),
        ({"percentile": 0}, "percentile is 0; it is between 0 and 100"),
        ({"weights": {"dice": 1}}, r"weights names \['dice'\]; the terms of DualNetworksObjective are"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualNetworksObjective(LabelCoding(1), **arguments)


def test_overlapping_regions_are_refused():
    heads, label = example(2)
    with pytest.raises(ValueError, match="logits_v has 3 maps"):
        DualNetworksObjective(LabelCoding(2, [[1, 2], [2]]))(heads, {"label": label}, 0)


# --- the overlays ---


def content(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_released_variant_switches_off_what_the_authors_program_does_not_back_propagate_and_nothing_else():
    method, released = content(METHOD), content("configs/methods/dual_networks_released.json")
    assert method.pop("ramp_length") == "@max_iterations"
    assert method.pop("about") != released.pop("about")
    method["objective"]["weights"].update(pseudo=0, contrastive=0)
    assert released == method


def run(workflow, *files, **overrides):
    bundle = workflow(*files, **overrides)
    bundle.initialize()
    bundle.run()
    bundle.finalize()


@pytest.mark.parametrize("num_classes", [1, 2])
def test_method_trains_two_iterations_with_every_term_and_segments_what_it_is_given(
    workflow, tiny, tmp_path, num_classes
):
    data = tiny if num_classes == 1 else write_dataset(tmp_path / "data", num_classes=2)
    run(workflow, TRAIN, METHOD, **small(data, tmp_path, max_iterations=2, num_classes=num_classes))
    with (tmp_path / "training_log.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert all(np.isfinite(float(last[term])) and float(last[f"{term}_weight"]) > 0 for term in TERMS)
    run(
        workflow,
        "configs/inference.json",
        str(tmp_path / "models" / "model.json"),
        workflow_type="inference",
        input_dir=str(data / "images"),
        output_dir=str(tmp_path / "masks"),
        ckpt_path=str(tmp_path / "models" / "model.pt"),
        dataset__data=[{"image": str(data / "images" / "test_0.nii.gz")}],
        device="$torch.device('cpu')",
    )
    assert [mask.name for mask in (tmp_path / "masks").glob("*_seg.nii.gz")] == ["test_0_seg.nii.gz"]
