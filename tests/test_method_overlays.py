"""Tests of configs/methods: the overlays of entropy minimisation, teachers and multi-decoder methods, end to end."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from conftest import ROOT, small
from monai.bundle import ConfigParser

TRAIN, INFERENCE = "configs/train.json", "configs/inference.json"
# Method: every term with its weight at the end of the run.
METHODS = {
    "entropy_minimization": {"supervised_segmentation": 1, "entropy": 0.1},
    "mean_teacher": {"supervised_segmentation": 1, "consistency": 0.1},
    "ua_mt": {"supervised_segmentation": 1, "consistency": 0.1},
    "mc_net": {"supervised_dice": 0.5, "mutual_consistency": 1},
    "cct": {"supervised_segmentation": 1, "consistency": 0.1},
    "ad_mt": {"supervised_segmentation": 1, "pseudo": 2},
    "urpc": {"supervised_segmentation": 1, "consistency": 0.1, "uncertainty": 0.1},
}
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_two_iterations_through_the_bundle_and_the_weights_fit_inference(method, workflow, tiny, tmp_path):
    peaks = METHODS[method]
    overrides = small(tiny, tmp_path, max_iterations=2, val_interval=2)
    bundle = workflow(TRAIN, f"configs/methods/{method}.json", **overrides)
    bundle.initialize()
    objective = bundle.parser.get_parsed_content("objective")
    student = bundle.parser.get_parsed_content("network")
    start = [weight.detach().clone() for weight in student.parameters()]
    bundle.run()

    with (tmp_path / "training_log.csv").open(newline="", encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    assert len(log) == 2
    for iteration, row in enumerate(log):
        assert all(math.isfinite(float(row[term])) for term in peaks)
        # The ramp is the whole run long: exp(-5) at its start, exp(-5/4) in its middle.
        ramp = math.exp(-5 * (1 - iteration / 2) ** 2)
        for term, peak in peaks.items():
            expected = peak if term.startswith("supervised") else peak * ramp
            assert float(row[f"{term}_weight"]) == pytest.approx(expected, rel=1e-4)
    assert not all(torch.equal(a, b) for a, b in zip(start, student.parameters()))

    if method in ("mean_teacher", "ua_mt"):
        # Two steps: the teacher is the mean of the students after the first and the second, hence not the second.
        pairs = list(zip(objective.teacher.network.parameters(), student.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.allclose(a, b, atol=0.1) for a, b in pairs)

    parser = ConfigParser()
    parser.read_config([str(ROOT / INFERENCE), str(tmp_path / "models" / "model.json")])
    trained = parser.get_parsed_content("network_def").eval()
    trained.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    image = torch.randn(1, 1, 16, 16, 16)
    probability = trained(image)
    assert probability.shape == (1, 1, 16, 16, 16) and 0 <= probability.min() and probability.max() <= 1
    assert torch.equal(probability, student.eval()(image))


@each_method
@pytest.mark.parametrize("regions", [None, [[1, 2], [2]]], ids=["exclusive", "overlapping"])
def test_two_classes_and_overlapping_regions_train(method, regions, tiny, tmp_path):
    """Overlapping regions need sigmoid heads: one override, for the methods that are published with softmax."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / TRAIN), str(ROOT / f"configs/methods/{method}.json")])
    parser.update(small(tiny, tmp_path, base_filters=1, num_classes=2, regions=regions))
    if regions and "activation" in parser["network_def"]:
        parser["network_def"]["activation"] = "sigmoid"
    torch.manual_seed(0)
    network = parser.get_parsed_content("network").train()
    objective = parser.get_parsed_content("objective")
    label = torch.zeros(2, 1, 16, 16, 16)
    label[:, :, 4:9], label[:, :, 9:12] = 1, 2
    targets = {"image": torch.randn(4, 1, 16, 16, 16), "label": label}
    targets = objective.views({"image": targets["image"][:2], "label": label}, {"image": targets["image"][2:]}, 0)
    loss = objective(network(targets["image"]), targets, 0)
    loss.total.backward()
    assert set(loss.terms) == set(objective.TERMS) == set(METHODS[method])
    # The masks of UA-MT and AD-MT may leave nothing of an untrained network.
    unsure = {"ua_mt": "consistency", "ad_mt": "pseudo"}
    assert all(value > 0 for name, value in loss.terms.items() if name != unsure.get(method))
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert network.eval()(targets["image"]).shape == (4, 2, 16, 16, 16)
