"""Tests of scripts/methods/dual_task.py, and of what DTC and DTML have in common: switches, gradients, overlays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import ROOT, write_dataset
from dual_task import (
    LABELED,
    SHAPE,
    K,
    channels,
    make_heads,
    make_label,
    merged,
    reached,
    rows,
    run,
    smooth_field,
    train,
    transformers,
    values_of,
)
from monai.bundle import ConfigParser

from scripts.data import LabelCoding
from scripts.methods import DTCObjective, DTMLObjective
from scripts.methods.dual_task import reference_map

OBJECTIVES = {"dtc": DTCObjective, "dtml": DTMLObjective}
LABELED_CROPS, ALL_CROPS, NO_CROPS = [True, True, False, False], [True] * 4, [False] * 4
BOTH_HEADS = {"logits", "distance"}
DTC_TERMS, DTML_TERMS = set(DTCObjective.TERMS), set(DTMLObjective.TERMS)
each_method = pytest.mark.parametrize("method", OBJECTIVES)
each_term = pytest.mark.parametrize(
    "method, name", [(method, name) for method, objective in OBJECTIVES.items() for name in objective.TERMS]
)
# Crops whose heads "logits" and "distance" receive a gradient, by the term.
GRADIENTS = {
    "supervised_segmentation": (LABELED_CROPS, NO_CROPS),
    "supervised_mask": (NO_CROPS, LABELED_CROPS),
    "supervised_distance": (NO_CROPS, LABELED_CROPS),
    "consistency": (ALL_CROPS, ALL_CROPS),
}


def build(method, weights=None, *, classes=2, k=1500):
    return OBJECTIVES[method](LabelCoding(classes), *transformers(k), weights)


@each_term
def test_weight_zero_removes_its_term_and_changes_no_other(method, name):
    heads, targets = make_heads(), {"label": make_label()}
    whole, without = (values_of(build(method, weights)(heads, targets, 0)) for weights in ({}, {name: 0}))
    assert whole.pop(name) > 0
    assert without == whole


@each_term
def test_every_term_gives_gradient_to_its_heads_and_crops_and_to_no_others(method, name):
    heads = make_heads()
    weights = {term: float(term == name) for term in OBJECTIVES[method].TERMS}
    build(method, weights, k=K)(heads, {"label": make_label()}, 0).total.backward()
    assert (reached(heads["logits"].grad), reached(heads["distance"].grad)) == GRADIENTS[name]


@each_method
@pytest.mark.parametrize("value", [0, 1], ids=["empty", "full"])
def test_a_label_without_a_boundary_gives_finite_gradients(method, value):
    heads = {name: head[:, :1].detach().requires_grad_() for name, head in make_heads().items()}
    label = torch.full((LABELED, 1, *SHAPE[2:]), float(value))
    build(method, classes=1)(heads, {"label": label}, 0).total.backward()
    assert all(head.grad.isfinite().all() and head.grad.abs().max() > 0 for head in heads.values())


# The reference map


@each_method
def test_a_map_among_the_targets_replaces_the_one_made_from_the_label(method):
    heads, label = make_heads(), make_label()
    given = torch.tensor(np.tanh(smooth_field(7, (LABELED, *SHAPE[1:]))))
    made, loss = (build(method)(heads, {"label": label, **more}, 0) for more in ({}, {"distance": given}))
    assert {name for name in loss.terms if loss.terms[name] != made.terms[name]} == {"supervised_distance"}
    expected = ((heads["distance"][:LABELED].detach().double() - given) ** 2).mean().item()
    assert loss.terms["supervised_distance"].item() == pytest.approx(expected, rel=1e-5)


def test_reference_map_has_no_gradient_and_is_float32():
    label = torch.tensor(channels(make_label()), dtype=torch.float32).requires_grad_()
    made = reference_map({"label": label}, transformers()[0]).map
    assert not made.requires_grad and made.dtype == torch.float32
    given = reference_map({"label": label, "distance": label.detach().half()}, transformers()[0]).map
    assert given.dtype == torch.float32 and torch.equal(given, label)


# Overlays


ABLATIONS = [
    ("dtc", None, BOTH_HEADS, DTC_TERMS, 2),
    ("dtc", "dtc_seg", {"logits"}, {"supervised_segmentation"}, 0),
    ("dtc", "dtc_lsf", {"distance"}, {"supervised_distance"}, 0),
    ("dtc", "dtc_seg_lsf", BOTH_HEADS, {"supervised_segmentation", "supervised_distance"}, 0),
    ("dtc", "dtc_labeled_only", BOTH_HEADS, DTC_TERMS, 0),
    ("dtml", None, BOTH_HEADS, DTML_TERMS - {"supervised_distance"}, 2),
    ("dtml", "dtml_l_dis", BOTH_HEADS, DTML_TERMS - {"supervised_mask"}, 2),
    ("dtml", "dtml_l_dis_l_mask", BOTH_HEADS, DTML_TERMS, 2),
    ("dtml", "dtml_m_s", {"logits"}, {"supervised_segmentation"}, 0),
    ("dtml", "dtml_m_d", {"distance"}, {"supervised_mask"}, 0),
    ("dtml", "dtml_labeled_only", BOTH_HEADS, DTML_TERMS - {"supervised_distance"}, 0),
]


@pytest.mark.parametrize("method, ablation, heads, terms, unlabeled", ABLATIONS)
def test_ablation_has_the_heads_terms_and_crops_that_it_is_named_for(method, ablation, heads, terms, unlabeled):
    files = [f"configs/methods/{method}.json", *([f"configs/ablations/{ablation}.json"] if ablation else [])]
    parser = merged(*files)
    objective, network = parser.get_parsed_content("objective"), parser.get_parsed_content("network_def")
    assert set(network.train()(torch.randn(2, 1, 16, 16, 16))) == heads
    assert {name for name in objective.TERMS if objective.active(name)} == terms
    assert parser["unlabeled_batch_size"] == unlabeled
    # DTC's 0.3 belongs to the sum with the segmentation; alone it would only be a smaller learning rate.
    of_distance = 0.3 if method == "dtc" and ablation != "dtc_lsf" else 1
    assert objective.weights["supervised_distance"] in (0, of_distance)
    others = set(objective.TERMS) - {"supervised_distance", "consistency"}
    assert all(objective.weights[name] in (0, 1) for name in others)


@pytest.mark.parametrize("method, off, peak", [("dtc", set(), 1), ("dtml", {"supervised_distance"}, 2)])
def test_method_trains_two_classes_leaves_weights_for_inference_and_is_evaluated(workflow, tmp_path, method, off, peak):
    overlay = f"configs/methods/{method}.json"
    data = write_dataset(tmp_path / "data", num_classes=2)
    log = train(workflow, data, tmp_path, overlay, num_classes=2)
    assert len(log) == 2
    for iteration, row in enumerate(log):
        assert all(math.isfinite(float(row[term])) for term in set(OBJECTIVES[method].TERMS) - off)
        assert all(row[term] == "" for term in off)
        assert float(row["consistency_weight"]) == pytest.approx(peak * math.exp(-5 * (1 - iteration / 2) ** 2))
    parser = ConfigParser()
    parser.read_config([ROOT / "configs/inference.json", tmp_path / "models" / "model.json"])
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    parser.get_parsed_content("network_def").load_state_dict(state)
    run(workflow, data, tmp_path, overlay, "configs/evaluate.json", num_classes=2)
    assert [(row["case"], row["class"]) for row in rows(tmp_path / "metrics.csv")] == [
        (case, name) for case in ("test_0", "test_1") for name in ("1", "2")
    ]
