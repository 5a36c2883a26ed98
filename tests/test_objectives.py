"""Tests of scripts/methods: every term against float64 numpy, what receives gradient and what must not, errors."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from scripts.data import LabelCoding
from scripts.distance import (
    CascadedDistance,
    DistanceToSegmentation,
    ExactDistance,
    SegmentationToDistance,
)
from scripts.methods import DBiSLObjective, GaussianRampUp, Objective, SupervisedObjective
from scripts.methods.dbisl import unanimity_mask
from scripts.methods.losses import dice_loss, masked_mean, segmentation_loss

TERMS = DBiSLObjective.TERMS
K = 10  # Far below the papers' 1500: float32 and float64 then agree on the cross-entropy behind the steep sigmoid.


def line(*values):
    """Return one channel (1, 1, n, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


# Losses


@pytest.mark.parametrize(
    "probability, target, expected",
    [
        (line(1, 0.5, 0), line(1, 1, 0), 1 - 2 * 1.5 / (1.25 + 2)),
        (line(0.5, 0.5), line(0, 0), 1),
        (line(0, 0), line(1, 0), 1),
        (line(1, 0), line(1, 0), 0),
        # A class that is absent from both costs nothing.
        (line(0, 0), line(0, 0), 0),
        # Joint over the batch: the second crop alone would cost 1, the mean over the crops would be 0.5.
        (torch.cat([line(1, 1, 1), line(1, 0, 0)]), torch.cat([line(1, 1, 1), line(0, 0, 0)]), 1 - 6 / 7),
        # Mean over the classes: the first costs 0, the second 1 - 1 / (0.25 + 1).
        (torch.cat([line(1, 0), line(0.5, 0)], 1), torch.cat([line(1, 0), line(1, 0)], 1), 0.5 * (1 - 1 / 1.25)),
        # Three classes, of which one is absent and one is missed.
        (torch.cat([line(1), line(0), line(0)], 1), torch.cat([line(1), line(0), line(1)], 1), 1 / 3),
    ],
    ids=["squares", "false-positives", "missed", "perfect", "absent", "joint", "mean-over-classes", "three-classes"],
)
def test_dice_loss_has_the_hand_computed_value(probability, target, expected):
    assert dice_loss(probability, target).item() == pytest.approx(expected, abs=3e-5)


def test_dice_loss_adds_the_smoothing_above_and_below():
    assert dice_loss(line(0.5, 0), line(1, 0), smooth=1.0).item() == pytest.approx(1 - (1 + 1) / (1.25 + 1))


def test_segmentation_loss_is_half_dice_and_half_cross_entropy():
    # p = 3/4, 1/2 for the target 1, 0.
    dice = 1 - 2 * 0.75 / (0.75**2 + 0.5**2 + 1)
    cross_entropy = -(math.log(0.75) + math.log(0.5)) / 2
    loss = segmentation_loss(line(math.log(3), 0), line(1, 0))
    assert loss.item() == pytest.approx(0.5 * (dice + cross_entropy), abs=1e-5)


def test_segmentation_loss_stays_finite_at_logits_that_saturate():
    logits = line(200, -200, 200, -200).requires_grad_()
    loss = segmentation_loss(logits, line(1, 0, 0, 1))
    loss.backward()
    # Half of what is wrong costs 200 each in the cross-entropy; Dice is 1 - 2/4.
    assert loss.item() == pytest.approx(0.5 * (100 + 0.5), rel=1e-4)
    assert logits.grad.isfinite().all()


def test_segmentation_loss_of_a_softmax_head_counts_the_background_in_the_cross_entropy_alone():
    # Two voxels, two classes: softmax (1/4, 1/4, 1/2) for a voxel of class 2, (1/2, 1/4, 1/4) for the background.
    logits = torch.tensor([[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]]).log().reshape(1, 3, 2, 1, 1)
    target = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).reshape(1, 2, 2, 1, 1)
    dice = (1 + (1 - 2 * 0.5 / (0.5**2 + 0.25**2 + 1))) / 2
    assert segmentation_loss(logits, target).item() == pytest.approx(0.5 * (dice + math.log(2)), abs=1e-4)


@pytest.mark.parametrize(
    "mask, expected", [([True, False, True], (1 + 16) / 2), ([True] * 3, 7), ([False, False, True], 16)]
)
def test_masked_mean_averages_where_the_mask_holds(mask, expected):
    assert masked_mean(torch.tensor([1.0, 4.0, 16.0]), torch.tensor(mask)).item() == pytest.approx(expected)


def test_masked_mean_broadcasts_the_mask():
    values = torch.arange(12.0).reshape(2, 2, 3)
    mask = torch.tensor([[True, False], [False, True]])[..., None]
    assert masked_mean(values, mask).item() == pytest.approx((0 + 1 + 2 + 9 + 10 + 11) / 6)


def test_masked_mean_of_nothing_is_zero_with_a_zero_gradient():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([False, False]))
    mean.backward()
    assert mean.item() == 0
    assert values.grad.tolist() == [0, 0]


# Ramp


@pytest.mark.parametrize(
    "length, peak, iteration, expected",
    [
        (100, 1.0, 0, math.exp(-5)),
        (100, 1.0, 50, math.exp(-5 / 4)),
        (100, 1.0, 80, math.exp(-0.2)),
        (100, 1.0, 100, 1),
        (100, 1.0, 101, 1),
        (100, 1.0, 10**6, 1),
        (6 / 17 * 17000, 1.0, 3000, math.exp(-5 / 4)),
        (40, 0.3, 10, 0.3 * math.exp(-5 * 0.75**2)),
        (40, 0.3, 40, 0.3),
        (0, 2.0, 0, 2),
        (0.5, 1.0, 0, math.exp(-5)),
        (0.5, 1.0, 1, 1),
    ],
)
def test_ramp_has_the_hand_computed_value(length, peak, iteration, expected):
    assert GaussianRampUp(length, peak)(iteration) == pytest.approx(expected, rel=1e-12)


def test_ramp_peaks_at_one_unless_told():
    assert GaussianRampUp(10)(10) == 1


def test_negative_ramp_length_is_refused_with_its_value():
    with pytest.raises(ValueError, match="length is -1"):
        GaussianRampUp(-1)


# Objective


class Toy(Objective):
    """Two terms that are easy to compute by hand, and a record of what `terms` was given."""

    TERMS = ("mean", "square")

    def terms(self, heads, targets):
        self.given = heads, targets, torch.is_autocast_enabled("cpu")
        values = {"mean": heads["a"].mean(), "square": (heads["a"] ** 2).mean()}
        return {name: value for name, value in values.items() if self.active(name)}


def toy(weights=None):
    return Toy(LabelCoding(2), weights)


TOY_HEADS = {"a": line(1.0, 3.0)}
TOY_TARGETS = {"label": line(0.0, 2.0), "distance": line(7.0, 8.0)}


@pytest.mark.parametrize(
    "weights, iteration, total, terms, used",
    [
        (None, 0, 7, {"mean": 2, "square": 5}, {"mean": 1, "square": 1}),
        ({}, 0, 7, {"mean": 2, "square": 5}, {"mean": 1, "square": 1}),
        ({"mean": 0.5, "square": 3}, 0, 16, {"mean": 2, "square": 5}, {"mean": 0.5, "square": 3}),
        ({"square": -2.0}, 0, -8, {"mean": 2, "square": 5}, {"mean": 1, "square": -2}),
        ({"mean": 0}, 0, 5, {"square": 5}, {"square": 1}),
        ({"square": 0.0}, 9, 2, {"mean": 2}, {"mean": 1}),
        ({"mean": lambda t: t / 4}, 6, 8, {"mean": 2, "square": 5}, {"mean": 1.5, "square": 1}),
        # A function is a term that is on, even where it gives 0.
        ({"mean": lambda t: 0.0}, 6, 5, {"mean": 2, "square": 5}, {"mean": 0, "square": 1}),
    ],
)
def test_total_is_the_weighted_sum_of_the_terms_that_are_on(weights, iteration, total, terms, used):
    loss = toy(weights)(TOY_HEADS, TOY_TARGETS, iteration)
    assert loss.total.item() == pytest.approx(total)
    assert {name: value.item() for name, value in loss.terms.items()} == pytest.approx(terms)
    assert loss.weights == pytest.approx(used)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_terms_see_float32_heads_the_encoded_label_and_the_other_targets_outside_of_autocast(dtype):
    objective = toy()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective({"a": TOY_HEADS["a"].to(dtype)}, TOY_TARGETS, 0)
    heads, targets, autocast = objective.given
    assert not autocast
    assert loss.total.dtype == heads["a"].dtype == torch.float32
    assert torch.equal(targets["label"], torch.cat([line(0, 0), line(0, 1)], 1))
    assert torch.equal(targets["distance"], TOY_TARGETS["distance"])
    assert set(TOY_TARGETS) == {"label", "distance"} and TOY_TARGETS["label"].shape[1] == 1


def test_gradient_of_the_total_is_weighted():
    heads = {"a": line(1.0, 3.0).requires_grad_()}
    toy({"mean": 3.0, "square": 0.5})(heads, TOY_TARGETS, 0).total.backward()
    assert heads["a"].grad.flatten().tolist() == pytest.approx([3 / 2 + 0.5 * 1, 3 / 2 + 0.5 * 3])


def test_outputs_of_further_networks_are_among_the_heads_in_float32():
    class WithTeacher(Toy):
        def further_heads(self, heads, targets):
            return {"teacher": heads["logits"].half() + 1}

        def terms(self, heads, targets):
            assert heads["teacher"].dtype == torch.float32
            return {"mean": heads["teacher"].mean()}

    objective = WithTeacher(LabelCoding(1), {"square": 0})
    loss = objective({"logits": torch.ones(1, 1, 1, 1, 1)}, {"label": torch.zeros(1, 1, 1, 1, 1)}, 0)
    assert loss.total.item() == 2


def test_a_softmax_head_is_refused_for_overlapping_regions():
    objective = SupervisedObjective(LabelCoding(2, regions=[[1, 2], [2]]))
    with pytest.raises(ValueError, match="logits has 3 maps.*2 regions overlap. Add --network_def#activation sigm"):
        objective({"logits": torch.zeros(1, 3, 2, 2, 2)}, {"label": torch.zeros(1, 1, 2, 2, 2)}, 0)


def test_weights_of_unknown_terms_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"weights names \['maen', 'x'\]"):
        toy({"x": 1.0, "mean": 1.0, "maen": 0.0})


# References in double precision


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def smooth_field(seed, shape):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 0, 1.2, 1.2, 1.2))
    return noise / noise.std()


SHAPE = (4, 2, 8, 7, 6)


def make_heads(seed=0, shape=SHAPE):
    """Four float32 heads of smooth objects on which the decoders and tasks agree in part."""
    common = smooth_field(seed, shape)
    values = {
        f"{kind}_{decoder}": common + 0.5 * smooth_field(10 * (seed + 1) + i, shape)
        for i, (kind, decoder) in enumerate((kind, d) for kind in ("logits", "distance") for d in ("phi", "psi"))
    }
    return {
        name: torch.tensor(np.tanh(-x / 2) if "distance" in name else 2 * x, dtype=torch.float32).requires_grad_()
        for name, x in values.items()
    }


def make_label(seed=5, labeled=2, shape=SHAPE):
    """Label values (L, 1, H, W, D): background, class 1 and class 2, each in every crop."""
    value = smooth_field(seed, (labeled, 1, *shape[2:]))
    return torch.tensor((value > 0.2).astype(np.float32) + (value > 0.8))


def degenerate(heads):
    """Empties one channel of decoder phi's segmentation (labeled crop 1), and fills one of psi's (unlabeled crop 3)."""
    with torch.no_grad():
        heads["logits_phi"][1, 0] = -3 - heads["logits_phi"][1, 0].abs()
        heads["logits_psi"][3, 1] = 3 + heads["logits_psi"][3, 1].abs()
    return heads


def reference_dice(p, y):
    scores = []
    for c in range(p.shape[1]):
        a, b = p[:, c], y[:, c]
        scores.append(1 - (2 * (a * b).sum() + 1e-5) / ((a * a).sum() + (b * b).sum() + 1e-5))
    return np.mean(scores)


def reference_cross_entropy(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def reference_map(mask):
    """Signed map of one channel: min-max of the distances outside minus that of those inside."""
    if not mask.any():
        return np.ones(mask.shape)
    if mask.all():
        return -np.ones(mask.shape)
    outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
    return outside / outside.max() - inside / inside.max()


def reference_maps(p):
    """Maps of all channels (B, C, H, W, D), and which of them are neither empty nor full (B, C)."""
    masks = p > 0.5
    maps = np.array([[reference_map(mask) for mask in crop] for crop in masks])
    return maps, np.array([[mask.any() and not mask.all() for mask in crop] for crop in masks])


def reference_pseudo(p, r, *, hard=False, vote="both"):
    target = (p[0] + p[1]) / 2
    if hard:
        target = (target > 0.5).astype(float)
    votes = np.stack([p[0] > 0.5, p[1] > 0.5] + ([r[0] < 0, r[1] < 0] if vote == "both" else [])).sum(0)
    unanimous = (votes == 0) | (votes == (4 if vote == "both" else 2))
    return sum(reference_cross_entropy(p[d], target)[unanimous].sum() for d in range(2)) / max(1, unanimous.sum())


def reference_terms(
    heads, label, *, distance=None, r2s_cross_entropy=True, hard=False, on_labeled=True, vote="both", k=K
):
    """The nine terms of methods.md, section 1 (DBiSL Eq. 6, 7, 9, 10 and 14), in double precision with scipy's maps."""
    z, r = (
        [heads[f"{kind}_{decoder}"].detach().double().numpy() for decoder in ("phi", "psi")]
        for kind in ("logits", "distance")
    )
    p = [sigmoid(x) for x in z]
    y = np.concatenate([label.numpy() == c + 1 for c in range(z[0].shape[1])], 1).astype(float)
    n = len(y)
    real = reference_maps(y)[0] if distance is None else distance.double().numpy()
    terms = dict.fromkeys(TERMS, 0.0)
    for d in range(2):
        terms["supervised_segmentation"] += 0.5 * reference_dice(p[d][:n], y)
        terms["supervised_segmentation"] += 0.5 * reference_cross_entropy(p[d][:n], y).mean()
        terms["supervised_distance"] += ((r[d][:n] - real) ** 2).mean()
        seen, valid = reference_maps(p[d])
        if valid[:n].any():
            terms["supervised_s2r"] += ((seen[:n] - real) ** 2)[valid[:n]].mean()
        if valid.any():
            terms["consistency_s2r"] += ((seen - r[d]) ** 2)[valid].mean()
        q = sigmoid(-k * r[d])
        terms["consistency_r2s"] += ((q - p[d]) ** 2).mean()
        if r2s_cross_entropy:
            terms["supervised_r2s"] += 0.5 * reference_dice(q[:n], y) + 0.5 * reference_cross_entropy(q[:n], y).mean()
        else:
            terms["supervised_r2s"] += reference_dice(q[:n], y)
    terms["consistency_segmentation"] = ((p[0] - p[1]) ** 2).mean()
    terms["consistency_distance"] = ((r[0] - r[1]) ** 2).mean()
    first = 0 if on_labeled else n
    terms["pseudo"] = reference_pseudo([x[first:] for x in p], [x[first:] for x in r], hard=hard, vote=vote)
    return terms


# Labels only


@pytest.mark.parametrize("names", [("logits",), ("logits_phi", "logits_psi")], ids=["one-head", "two-heads"])
def test_supervised_objective_sums_the_segmentation_loss_of_its_heads_on_the_labeled_crops(names):
    made, label = make_heads(), make_label()
    heads = {name: made[like] for name, like in zip(names, ("logits_phi", "logits_psi"))}
    loss = SupervisedObjective(LabelCoding(2))(heads, {"label": label}, 0)
    y = np.concatenate([label.numpy() == c for c in (1, 2)], 1).astype(float)
    expected = 0
    for head in heads.values():
        p = sigmoid(head.detach().double().numpy()[:2])
        expected += 0.5 * (reference_dice(p, y) + reference_cross_entropy(p, y).mean())
    assert loss.terms.keys() == {"supervised_segmentation"}
    assert loss.total.item() == loss.terms["supervised_segmentation"].item() == pytest.approx(expected, rel=1e-5)


def test_supervised_objective_gives_no_gradient_to_unlabeled_crops_and_distance_heads():
    heads = make_heads()
    SupervisedObjective(LabelCoding(2))(heads, {"label": make_label()}, 0).total.backward()
    for decoder in ("phi", "psi"):
        gradient = heads[f"logits_{decoder}"].grad
        assert torch.all(gradient[2:] == 0)
        assert torch.all(gradient[:2].abs().amax((1, 2, 3, 4)) > 0)
        assert heads[f"distance_{decoder}"].grad is None


def test_supervised_objective_weighs_its_term():
    heads, targets = make_heads(), {"label": make_label()}
    whole = SupervisedObjective(LabelCoding(2))(heads, targets, 3).total
    half = SupervisedObjective(LabelCoding(2), {"supervised_segmentation": lambda t: t / 6})(heads, targets, 3)
    assert half.total.item() == pytest.approx(whole.item() / 2)
    assert half.weights == {"supervised_segmentation": 0.5}


# DBiSL


def dbisl(weights=None, *, k=K, transform=None, factor=1, classes=2, **options):
    return DBiSLObjective(
        LabelCoding(classes),
        SegmentationToDistance(transform or ExactDistance(), factor=factor, detach_extrema=True),
        DistanceToSegmentation(k),
        weights,
        **options,
    )


def only(*names):
    return {term: 1.0 if term in names else 0.0 for term in TERMS}


def values_of(loss):
    return {name: value.item() for name, value in loss.terms.items()}


@pytest.mark.parametrize("prepare", [lambda heads: heads, degenerate], ids=["generic", "with-empty-and-full"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_nine_terms_equal_the_reference_in_double_precision(seed, prepare):
    heads, label = prepare(make_heads(seed)), make_label()
    loss = dbisl()(heads, {"label": label}, 0)
    expected = reference_terms(heads, label)
    assert set(loss.terms) == set(TERMS)
    assert values_of(loss) == pytest.approx(expected, rel=2e-5)
    assert all(value.shape == () and value.dtype == torch.float32 for value in loss.terms.values())
    assert loss.total.item() == pytest.approx(sum(expected.values()), rel=2e-5)


@pytest.mark.parametrize(
    "options, reference_options",
    [
        ({"r2s_cross_entropy": False}, {"r2s_cross_entropy": False}),
        ({"hard_pseudo_labels": True}, {"hard": True}),
        ({"pseudo_on_labeled": False}, {"on_labeled": False}),
        ({"unanimity": "segmentation"}, {"vote": "segmentation"}),
        ({"k": 4}, {"k": 4}),
        (
            {"pseudo_on_labeled": False, "hard_pseudo_labels": True, "unanimity": "segmentation"},
            {"on_labeled": False, "hard": True, "vote": "segmentation"},
        ),
    ],
)
def test_options_change_the_terms_as_the_reference_says(options, reference_options):
    heads, label = make_heads(), make_label()
    expected = reference_terms(heads, label, **reference_options)
    assert values_of(dbisl(**options)(heads, {"label": label}, 0)) == pytest.approx(expected, rel=2e-5)
    assert expected != reference_terms(heads, label)  # so that the option is seen to matter


def test_a_map_among_the_targets_replaces_the_one_made_from_the_label():
    heads, label = make_heads(), make_label()
    given = torch.tensor(np.tanh(smooth_field(7, (2, *SHAPE[1:]))), dtype=torch.float32)
    loss = dbisl()(heads, {"label": label, "distance": given}, 0)
    expected = reference_terms(heads, label, distance=given)
    assert values_of(loss) == pytest.approx(expected, rel=2e-5)
    made = reference_terms(heads, label)
    assert {name for name in TERMS if made[name] != expected[name]} == {"supervised_distance", "supervised_s2r"}


@pytest.mark.parametrize("labeled, crops", [(4, 4), (1, 4), (1, 1)])
def test_terms_equal_the_reference_for_other_shares_of_labeled_crops(labeled, crops):
    heads = {name: head[:crops] for name, head in make_heads().items()}
    label = make_label(labeled=labeled)
    assert values_of(dbisl()(heads, {"label": label}, 0)) == pytest.approx(reference_terms(heads, label), rel=2e-5)


def test_without_unlabeled_crops_pseudo_supervision_of_those_alone_is_zero():
    heads, targets = make_heads(), {"label": make_label(labeled=4)}
    loss = dbisl(only("pseudo"), pseudo_on_labeled=False)(heads, targets, 0)
    loss.total.backward()
    assert loss.total.item() == 0 and loss.measures == {}
    assert torch.all(heads["logits_phi"].grad == 0)


@pytest.mark.parametrize("name", TERMS)
def test_weight_zero_removes_its_term_and_changes_no_other(name):
    heads, targets = degenerate(make_heads()), {"label": make_label()}
    whole, without = (values_of(dbisl(weights)(heads, targets, 0)) for weights in ({}, {name: 0}))
    value = whole.pop(name)
    assert value > 0
    assert without == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_that_is_alone_has_the_value_that_it_has_among_all(name):
    heads, label = degenerate(make_heads()), make_label()
    loss = dbisl(only(name))(heads, {"label": label}, 0)
    assert values_of(loss) == pytest.approx({name: reference_terms(heads, label)[name]}, rel=2e-5)


def test_total_is_lambda_times_supervision_and_consistency_plus_the_ramped_pseudo_supervision():
    heads, label = make_heads(), make_label()
    ramp = GaussianRampUp(100)
    weights = {name: 0.5 for name in TERMS if name != "pseudo"} | {"pseudo": ramp}
    expected = reference_terms(heads, label)
    pseudo = expected.pop("pseudo")
    for iteration, beta in ((0, math.exp(-5)), (50, math.exp(-1.25)), (200, 1.0)):
        loss = dbisl(weights)(heads, {"label": label}, iteration)
        assert loss.total.item() == pytest.approx(0.5 * sum(expected.values()) + beta * pseudo, rel=2e-5)
        assert loss.weights["pseudo"] == pytest.approx(beta)


# DBiSL: predictions that are empty or full


@pytest.mark.parametrize("fill", [-5.0, 5.0], ids=["empty", "full"])
def test_s2r_terms_leave_a_decoder_that_predicts_only_empty_or_full_masks_out(fill):
    heads, label = make_heads(), make_label()
    with torch.no_grad():
        heads["logits_phi"].fill_(fill)
    loss = dbisl(only("supervised_s2r", "consistency_s2r"))(heads, {"label": label}, 0)
    assert values_of(loss) == pytest.approx(
        {name: reference_terms(heads, label)[name] for name in loss.terms}, rel=2e-5
    )
    loss.total.backward()
    assert torch.all(heads["logits_phi"].grad == 0)
    assert torch.all(heads["distance_phi"].grad == 0)
    assert heads["logits_psi"].grad.abs().max() > 0


def test_s2r_terms_are_zero_when_no_prediction_is_usable():
    heads = make_heads()
    with torch.no_grad():
        heads["logits_phi"].fill_(-5)
        heads["logits_psi"].fill_(5)
    loss = dbisl(only("supervised_s2r", "consistency_s2r"))(heads, {"label": make_label()}, 0)
    assert values_of(loss) == {"supervised_s2r": 0, "consistency_s2r": 0}


@pytest.mark.parametrize("value, constant", [(0, 1.0), (1, -1.0)], ids=["empty", "full"])
def test_a_label_without_a_boundary_has_the_constant_map(value, constant):
    heads = {name: head[:, :1].detach() for name, head in make_heads().items()}
    label = torch.full((2, 1, *SHAPE[2:]), float(value))
    loss = dbisl(classes=1)(heads, {"label": label}, 0)
    expected = sum(((heads[f"distance_{d}"][:2] - constant) ** 2).mean().item() for d in ("phi", "psi"))
    assert loss.terms["supervised_distance"].item() == pytest.approx(expected, rel=1e-5)
    assert values_of(loss) == pytest.approx(reference_terms(heads, label), rel=2e-5)


# DBiSL: gradients


def gradients(name, heads=None, label=None, **options):
    """Gradients of one term by head (None where there is none), and its heads as float64 arrays."""
    heads = make_heads() if heads is None else heads
    label = make_label() if label is None else label
    dbisl(only(name), **options)(heads, {"label": label}, 0).total.backward()
    return {n: head.grad for n, head in heads.items()}, {n: h.detach().double().numpy() for n, h in heads.items()}


def assert_equals(gradient, expected):
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name, to_segmentation, to_distance",
    [
        ("supervised_segmentation", "labeled", None),
        ("supervised_distance", None, "labeled"),
        ("supervised_s2r", "labeled", None),
        ("supervised_r2s", None, "labeled"),
        ("consistency_segmentation", "all", None),
        ("consistency_distance", None, "all"),
        ("consistency_s2r", "all", "all"),
        ("consistency_r2s", "all", "all"),
        ("pseudo", "all", None),
    ],
)
def test_every_term_gives_gradient_to_its_heads_and_crops_in_both_decoders_and_to_no_others(
    name, to_segmentation, to_distance
):
    given, _ = gradients(name)
    for decoder in ("phi", "psi"):
        for gradient, crops in (
            (given[f"logits_{decoder}"], to_segmentation),
            (given[f"distance_{decoder}"], to_distance),
        ):
            reached = [False] * 4 if gradient is None else (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist()
            assert reached == {None: [False] * 4, "labeled": [True, True, False, False], "all": [True] * 4}[crops]


def test_consistency_of_the_segmentations_pulls_both_decoders():
    given, heads = gradients("consistency_segmentation")
    phi, psi = (sigmoid(heads[f"logits_{d}"]) for d in ("phi", "psi"))
    assert_equals(given["logits_phi"], 2 * (phi - psi) / phi.size * phi * (1 - phi))
    assert_equals(given["logits_psi"], 2 * (psi - phi) / phi.size * psi * (1 - psi))


def test_consistency_of_the_distance_maps_pulls_both_decoders():
    given, heads = gradients("consistency_distance")
    phi, psi = heads["distance_phi"], heads["distance_psi"]
    assert_equals(given["distance_phi"], 2 * (phi - psi) / phi.size)
    assert_equals(given["distance_psi"], 2 * (psi - phi) / phi.size)


@pytest.mark.parametrize("decoder", ["phi", "psi"])
def test_consistency_by_r2s_pulls_the_segmentation_and_through_the_sigmoid_the_distance(decoder):
    given, heads = gradients("consistency_r2s")
    p, q = sigmoid(heads[f"logits_{decoder}"]), sigmoid(-K * heads[f"distance_{decoder}"])
    assert_equals(given[f"logits_{decoder}"], 2 * (p - q) / p.size * p * (1 - p))
    assert_equals(given[f"distance_{decoder}"], 2 * (q - p) / p.size * -K * q * (1 - q))


@pytest.mark.parametrize("decoder", ["phi", "psi"])
def test_consistency_by_s2r_pulls_the_distance_of_the_usable_channels(decoder):
    given, heads = gradients("consistency_s2r", degenerate(make_heads()))
    seen, valid = reference_maps(sigmoid(heads[f"logits_{decoder}"]))
    assert not valid.all()
    r = heads[f"distance_{decoder}"]
    error = 2 * (r - seen) * valid[..., None, None, None] / (valid.sum() * seen[0, 0].size)
    assert_equals(given[f"distance_{decoder}"], error)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("vote", ["both", "segmentation"])
@pytest.mark.parametrize("on_labeled", [True, False])
def test_pseudo_label_and_unanimity_pass_no_gradient(on_labeled, vote, hard):
    given, heads = gradients("pseudo", pseudo_on_labeled=on_labeled, unanimity=vote, hard_pseudo_labels=hard)
    phi, psi = (sigmoid(heads[f"logits_{d}"]) for d in ("phi", "psi"))
    r_phi, r_psi = heads["distance_phi"], heads["distance_psi"]
    inside = (phi > 0.5) & (psi > 0.5)
    outside = (phi <= 0.5) & (psi <= 0.5)
    if vote == "both":
        inside &= (r_phi < 0) & (r_psi < 0)
        outside &= (r_phi >= 0) & (r_psi >= 0)
    unanimous = inside | outside
    if not on_labeled:
        unanimous[:2] = False
    assert 0.2 < unanimous.mean() < 0.95
    target = (phi + psi) / 2
    if hard:
        target = (target > 0.5).astype(float)
    # The derivative of the cross-entropy with respect to the logit, its target held fixed, is p - target.
    assert_equals(given["logits_phi"], (phi - target) * unanimous / unanimous.sum())
    assert_equals(given["logits_psi"], (psi - target) * unanimous / unanimous.sum())
    for decoder in ("phi", "psi"):
        gradient = given[f"distance_{decoder}"]
        assert gradient is None or torch.all(gradient == 0)


def test_label_and_given_map_receive_no_gradient():
    label = make_label().requires_grad_()
    loss = dbisl()(make_heads(), {"label": label}, 0)
    loss.total.backward()
    assert label.grad is None


@pytest.mark.parametrize("transform", [CascadedDistance, ExactDistance])
@pytest.mark.parametrize("prepare", [lambda heads: heads, degenerate], ids=["generic", "with-empty-and-full"])
def test_everything_is_finite_at_the_papers_steepness_and_resolution(prepare, transform):
    heads = prepare(make_heads())
    loss = dbisl(k=1500, factor=0.5, transform=transform())(heads, {"label": make_label()}, 0)
    loss.total.backward()
    assert all(value.isfinite() for value in loss.terms.values())
    assert all(head.grad.isfinite().all() and head.grad.abs().max() > 0 for head in heads.values())


def test_bfloat16_heads_under_autocast_give_the_loss_of_the_same_heads_in_float32():
    heads = {name: head.detach().bfloat16() for name, head in make_heads().items()}
    targets = {"label": make_label()}
    objective = dbisl(k=1500, factor=0.5, transform=CascadedDistance())
    expected = objective({name: head.float() for name, head in heads.items()}, targets, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(heads, targets, 0)
    assert loss.total.dtype == torch.float32
    assert values_of(loss) == values_of(expected)


# DBiSL: unanimity

# Columns: probability of phi and psi, distance of phi and psi, unanimous over both tasks, over the segmentations alone.
# A half is background, as in the decoded label, and a distance of 0 is not inside.
VOTES = [
    (0.9, 0.7, -0.5, -0.1, True, True),
    (0.9, 0.7, -0.5, 0.1, False, True),
    (0.9, 0.7, 0.5, -0.1, False, True),
    (0.9, 0.7, 0.5, 0.1, False, True),
    (0.9, 0.2, -0.5, -0.1, False, False),
    (0.9, 0.2, -0.5, 0.1, False, False),
    (0.1, 0.7, 0.5, -0.1, False, False),
    (0.1, 0.7, 0.5, 0.1, False, False),
    (0.1, 0.2, -0.5, -0.1, False, True),
    (0.1, 0.2, -0.5, 0.1, False, True),
    (0.1, 0.2, 0.5, -0.1, False, True),
    (0.1, 0.2, 0.5, 0.1, True, True),
    (0.5, 0.2, 0.5, 0.1, True, True),
    (0.5, 0.7, -0.5, -0.1, False, False),
    (0.1, 0.2, 0.0, 0.1, True, True),
    (0.9, 0.7, 0.0, -0.1, False, True),
]


@pytest.mark.parametrize("row", VOTES, ids=str)
def test_unanimity_follows_the_table_of_votes(row):
    phi, psi, r_phi, r_psi, both, segmentation = row
    probability, distance = torch.tensor([[phi], [psi]]), torch.tensor([[r_phi], [r_psi]])
    assert unanimity_mask(probability, distance).tolist() == [both]
    assert unanimity_mask(probability, None).tolist() == [segmentation]


@pytest.mark.parametrize("vote, column", [("both", 4), ("segmentation", 5)])
def test_pseudo_supervision_averages_over_the_unanimous_voxels_of_the_table(vote, column):
    phi, psi, r_phi, r_psi = (line(*(row[i] for row in VOTES)) for i in range(4))
    heads = {"logits_phi": phi.logit(), "logits_psi": psi.logit(), "distance_phi": r_phi, "distance_psi": r_psi}
    loss = dbisl(only("pseudo"), classes=1, unanimity=vote)(heads, {"label": torch.zeros(1, 1, len(VOTES), 1, 1)}, 0)
    expected = []
    for row in VOTES:
        if row[column]:
            target = (row[0] + row[1]) / 2
            expected.append(sum(-target * math.log(p) - (1 - target) * math.log(1 - p) for p in row[:2]))
    assert loss.total.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_nothing_unanimous_means_no_pseudo_supervision():
    heads = {"logits_phi": line(2, -2).requires_grad_(), "logits_psi": line(-2, 2).requires_grad_()}
    heads |= {"distance_phi": line(-1, 1), "distance_psi": line(-1, 1)}
    loss = dbisl(only("pseudo"), classes=1)(heads, {"label": line(0, 1)}, 0)
    loss.total.backward()
    assert loss.total.item() == 0 and loss.measures == {"unanimous_share": 0}
    assert torch.all(heads["logits_phi"].grad == 0)


@pytest.mark.parametrize("unanimity", ["distance", "none", None])
def test_unknown_unanimity_is_refused_with_the_accepted_ones(unanimity):
    with pytest.raises(ValueError, match=f"unanimity is {unanimity!r}"):
        dbisl(unanimity=unanimity)


def test_terms_that_dbisl_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"weights names \['supervised'\]"):
        dbisl({"supervised": 1.0})
