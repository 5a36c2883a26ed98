"""Tests of the share of the gap and of draws: hand-computed values, scipy's t test, coverage, and the report."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from comparisons import NAN, finished_run, plan_file, rows
from conftest import ROOT
from scipy.stats import ttest_1samp

from tools.comparison.gap import GAP_COLUMNS, gap_closed
from tools.comparison.paired import components, summary
from tools.comparison.plan import PlanError, read_plan
from tools.comparison.run import main
from tools.comparison.tables import write_report

SUPERVISED = ["configs/methods/supervised.json"]
METHODS = {
    "supervised": SUPERVISED,
    "dbisl": ["configs/methods/dbisl.json"],
    "all_labels": {"configs": SUPERVISED, "num_labeled": [160]},
}


@pytest.fixture(autouse=True)
def _in_the_bundles_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def cases(values) -> dict[str, float]:
    return {f"case {i}": float(value) for i, value in enumerate(values)}


def test_share_of_one_run_is_a_ratio_of_means_and_its_interval_inverts_the_t_test_over_the_cases():
    baseline, method, ceiling = np.array([[0.5, 0.6, 0.7, 0.4], [0.6, 0.62, 0.75, 0.55], [0.8, 0.85, 0.8, 0.75]])
    found = gap_closed({(0, 0): cases(method)}, {(0, 0): cases(baseline)}, {(0, 0): cases(ceiling)})
    assert found["room"] == pytest.approx(0.25)
    assert found["gap_closed"] == pytest.approx(0.08 / 0.25)
    for bound in (found["gap_low"], found["gap_high"]):
        rest = method - baseline - bound * (ceiling - baseline)
        assert ttest_1samp(rest, 0).pvalue == pytest.approx(0.05)
    assert found["gap_low"] < found["gap_closed"] < found["gap_high"]
    low, high = ttest_1samp(ceiling - baseline, 0).confidence_interval(0.95)
    assert found["room_error"] == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("several", ["draws", "seeds"])
def test_interval_of_several_draws_or_of_the_seeds_of_one_inverts_the_t_test_over_them(several):
    # All cases alike: nothing varies but the runs.
    baseline, method, ceiling = np.array([0.50, 0.56, 0.53]), np.array([0.58, 0.63, 0.66]), 0.8
    runs = [(i, 7) if several == "draws" else (7, i) for i in range(3)]
    found = gap_closed(
        {run: cases([value] * 5) for run, value in zip(runs, method)},
        {run: cases([value] * 5) for run, value in zip(runs, baseline)},
        {(0, 0): cases([ceiling] * 5)},
    )
    assert found["gap_closed"] == pytest.approx((method - baseline).mean() / (ceiling - baseline).mean())
    for bound in (found["gap_low"], found["gap_high"]):
        rest = method - baseline - bound * (ceiling - baseline)
        assert ttest_1samp(rest, 0).pvalue == pytest.approx(0.05)


def test_seeds_of_a_draw_are_no_further_draws():
    # Two seeds that repeat each other to the last digit tell nothing that one does not.
    values = {0: (0.5, 0.6), 1: (0.56, 0.7), 2: (0.53, 0.62)}
    one, two = (
        gap_closed(
            {(d, s): cases([v[1]] * 4) for d, v in values.items() for s in range(seeds)},
            {(d, s): cases([v[0]] * 4) for d, v in values.items() for s in range(seeds)},
            {(0, 0): cases([0.8] * 4)},
        )
        for seeds in (1, 2)
    )
    assert one == pytest.approx(two) and one["gap_low"] < one["gap_high"]


def test_seeds_of_the_ceiling_are_in_the_error():
    method, baseline = {(0, 0): cases([0.6] * 4)}, {(0, 0): cases([0.5] * 4)}
    found = gap_closed(method, baseline, {(0, s): cases([value] * 4) for s, value in enumerate((0.78, 0.8, 0.82))})
    low, high = ttest_1samp([0.28, 0.3, 0.32], 0).confidence_interval(0.95)
    assert found["room_error"] == pytest.approx((high - low) / 2)


def test_interval_holds_the_true_share_in_about_95_of_100_comparisons():
    random = np.random.default_rng(0)
    held = []
    for _ in range(400):
        case, room = random.normal(0, 0.03, 20), random.normal(0.1, 0.02, 20)
        gain = 0.5 * room + random.normal(0, 0.01, 20)
        baseline, method = {}, {}
        for draw in range(3):
            moved = random.normal(0, 0.012)
            for seed in range(2):
                noise = random.normal(0, 0.006, (2, 20)) + random.normal(0, 0.003, (2, 1))
                baseline[draw, seed] = cases(0.7 + case + moved + noise[0])
                method[draw, seed] = cases(0.7 + case + gain + 0.5 * moved + random.normal(0, 0.006) + noise[1])
        ceiling = {(0, seed): cases(0.7 + case + room + random.normal(0, 0.003)) for seed in range(2)}
        found = gap_closed(method, baseline, ceiling)
        held.append(found["gap_low"] is None or found["gap_low"] <= 0.5 <= found["gap_high"])
    # 380 +- 3 standard deviations of a binomial.
    assert 367 <= sum(held) <= 393


def test_no_share_where_the_cases_cannot_tell_the_ceiling_from_the_baseline_or_nothing_is_common():
    baseline, method = cases([0.5, 0.6, 0.7, 0.65]), cases([0.55, 0.6, 0.72, 0.6])
    found = gap_closed({(0, 0): method}, {(0, 0): baseline}, {(0, 0): cases([0.52, 0.58, 0.75, 0.62])})
    assert found["room"] == pytest.approx(0.005) and found["room_error"] > 0.005
    assert (found["gap_closed"], found["gap_low"], found["gap_high"]) == (None, None, None)
    worse = gap_closed({(0, 0): method}, {(0, 0): baseline}, {(0, 0): cases([0.3, 0.4, 0.5, 0.45])})
    assert worse["room"] == pytest.approx(-0.2) and worse["gap_closed"] is None
    nothing = dict.fromkeys(GAP_COLUMNS)
    assert gap_closed({(0, 0): method}, {(1, 0): baseline}, {(0, 0): baseline}) == nothing
    assert gap_closed({(0, 0): method}, {(0, 0): baseline}, {}) == nothing
    assert gap_closed({(0, 0): {"a": 0.6}}, {(0, 0): {"a": 0.5}}, {(0, 0): {"a": 0.9}}) == nothing


def test_case_that_one_of_the_runs_lacks_is_in_no_share():
    baseline, method, ceiling = cases([0.5, 0.6, 0.4]), cases([0.6, 0.7, 0.5]), cases([0.9, 1.0, 0.8])
    found = gap_closed(
        {(0, 0): {**method, "x": NAN}}, {(0, 0): {**baseline, "x": 0.1}}, {(0, 0): {**ceiling, "x": 1.0}}
    )
    assert found["room"] == pytest.approx(0.4) and found["gap_closed"] == pytest.approx(0.25)


def test_components_have_the_hand_computed_values():
    # Within draws: (0.02 + 0.08) / 2 degrees. Between: 2 (0.3^2 + 0.3^2) / 1 = 0.36, of which 2 per draw.
    draws, seeds = components({(0, 0): 0.5, (0, 1): 0.7, (1, 0): 1.0, (1, 1): 1.4})
    assert (draws, seeds) == (pytest.approx(math.sqrt((0.36 - 0.05) / 2)), pytest.approx(math.sqrt(0.05)))
    # Three seeds and one: 4 - (9 + 1) / 4 = 1.5 per draw; between is 3 + 9, within 2 / 2.
    draws, seeds = components({(0, 0): 1.0, (0, 1): 2.0, (0, 2): 3.0, (5, 0): 6.0})
    assert (draws, seeds) == (pytest.approx(math.sqrt(11 / 1.5)), pytest.approx(1.0))
    # Draws that differ by less than their seeds explain nothing.
    assert components({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 1.0, (1, 1): 3.0}) == (0.0, pytest.approx(math.sqrt(2)))


def test_components_that_cannot_be_told_are_none():
    assert components({(0, 0): 1.0, (1, 0): 2.0}) == (None, None)
    assert components({(0, 0): 1.0, (0, 1): 3.0}) == (None, pytest.approx(math.sqrt(2)))
    assert components({(0, 0): 1.0}) == components({}) == (None, None)
    assert summary({(d, 0): {"a": d} for d in range(3)})["draws"] == 3


# Plans


def test_plan_with_draws_runs_the_ceiling_on_the_first_alone_and_keeps_the_names_of_draw_0(tmp_path):
    path = plan_file(
        tmp_path, methods=METHODS, num_labeled=[5], labeled_draws=[0, 3], seeds=[0, 1], ceiling="all_labels"
    )
    runs = read_plan(path).runs("out")
    assert [run.name for run in runs] == [
        *("supervised_5_0", "dbisl_5_0", "all_labels_160_0", "supervised_5_1", "dbisl_5_1", "all_labels_160_1"),
        *("supervised_5_0_draw3", "dbisl_5_0_draw3", "supervised_5_1_draw3", "dbisl_5_1_draw3"),
    ]
    assert [run.arguments("training", "data")["labeled_draw"] for run in runs] == [0] * 6 + [3] * 4
    assert runs[-1].folder.name == "dbisl_5_1_draw3"


@pytest.mark.parametrize(
    "changes, value",
    [
        ({"ceiling": "none"}, "none"),
        ({"ceiling": "supervised"}, "supervised"),
        ({"ceiling": ["dbisl"]}, "dbisl"),
        ({"ceiling": "dbisl"}, "dbisl"),
        ({"labeled_draws": []}, "labeled_draws"),
        ({"labeled_draws": [0.5]}, "0.5"),
        ({"common": {"labeled_draw": 1}}, "labeled_draw"),
    ],
)
def test_ceiling_or_draws_that_cannot_work_are_refused(tmp_path, changes, value):
    with pytest.raises(PlanError, match=value):
        read_plan(plan_file(tmp_path, methods=METHODS, **changes))


def test_run_from_before_there_were_draws_is_one_of_draw_0(tmp_path):
    run = finished_run(tmp_path, "m", 0, {("a", "1"): 0.5})
    arguments = run.arguments("training", "data")
    del arguments["labeled_draw"]
    (run.folder / "training.json").write_text(json.dumps(arguments))
    run.check_settings("data")


# The report


def report(folder, dice: dict[tuple[str, int, int], list[float]], *, draws: list[int]) -> str:
    """The report of runs (method, labels, draw) with the given Dice."""
    labels = sorted({n for method, n, _ in dice if method != "all_labels"})
    plan = read_plan(
        plan_file(folder, methods=METHODS, num_labeled=labels, labeled_draws=draws, seeds=[0], ceiling="all_labels")
    )
    for (method, n, draw), values in dice.items():
        finished_run(folder, method, 0, {(k, "1"): v for k, v in cases(values).items()}, labels=n, draw=draw)
    return write_report(plan, plan.runs(folder), folder)


def test_report_begins_with_the_share_and_gives_none_without_room(tmp_path):
    text = report(
        tmp_path,
        {
            ("supervised", 5, 0): [0.50, 0.60, 0.70],
            ("dbisl", 5, 0): [0.60, 0.71, 0.79],
            ("supervised", 20, 0): [0.72, 0.76, 0.83],
            ("dbisl", 20, 0): [0.72, 0.77, 0.84],
            ("all_labels", 160, 0): [0.70, 0.80, 0.90],
        },
        draws=[0],
    )
    assert text.index("Share of the gap") < text.index("| method | labels | runs |")
    (line,) = [line for line in text.splitlines() if line.startswith("| dbisl | ") and "no room" in line]
    assert line.startswith("| dbisl | 50 % (") and line.endswith(" | no room |")
    assert "| room: all_labels - supervised | +0.200 +- 0.000 | +0.030 +- 0.114 |" in text
    assert "**Warning: no room** with 20 labels (+0.030 +- 0.114)" in text
    assert "cannot be told: one run" in text
    table = {(row["method"], row["num_labeled"]): row for row in rows(tmp_path / "comparison.csv") if row["room"]}
    assert float(table["dbisl", "5"]["gap_closed"]) == pytest.approx(0.5)
    assert table["dbisl", "20"]["gap_closed"] == "" and float(table["dbisl", "20"]["room"]) == pytest.approx(0.03)
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_room_anywhere_has_no_share_and_no_figure_of_it(tmp_path):
    (tmp_path / "gap.png").write_bytes(b"of an earlier report")
    dice = {("supervised", 5, 0): [0.5, 0.7], ("dbisl", 5, 0): [0.6, 0.7], ("all_labels", 160, 0): [0.7, 0.6]}
    text = report(tmp_path, dice, draws=[0])
    assert "**Warning: no room** with 5 labels" in text and "| dbisl | no room |" in text
    assert not (tmp_path / "gap.png").exists()


def test_report_of_draws_says_what_they_explain_and_does_not_call_them_different_data(tmp_path):
    dice = {("supervised", 5, draw): [0.5 + draw / 20, 0.6] for draw in (0, 1)}
    text = report(tmp_path, dice, draws=[0, 1])
    assert "| supervised | 5 | 2 | 2 | cannot be told | cannot be told | cannot be told |" in text
    assert "No share of the gap to all labels is known yet" in text
    for draw, digest in ((0, "aa"), (1, "bb")):
        name = "supervised_5_0" + (f"_draw{draw}" if draw else "")
        data = {"labeled": {"cases": 5, "digest": digest}}
        (tmp_path / name / "run.json").write_text(json.dumps({"starts": [{"data": data}]}))
    plan = read_plan(plan_file(tmp_path, num_labeled=[5], seeds=[0], labeled_draws=[0, 1]))
    again = write_report(plan, plan.runs(tmp_path), tmp_path)
    assert "Trained on different data" not in again and "names no `ceiling`" in again


def test_two_seeds_in_two_draws_give_both_components(tmp_path):
    plan = read_plan(plan_file(tmp_path, num_labeled=[5], labeled_draws=[0, 1]))
    for draw, seed, dice in ((0, 0, 0.5), (0, 1, 0.7), (1, 0, 0.8), (1, 1, 0.9)):
        finished_run(tmp_path, "supervised", seed, {("a", "1"): dice}, draw=draw)
    text = write_report(plan, plan.runs(tmp_path), tmp_path)
    # Within: (0.02 + 0.005) / 2 = 0.0125; between: 2 (0.125^2 + 0.125^2) = 0.0625; draws (0.0625 - 0.0125) / 2.
    assert f"| supervised | 5 | 2 | 4 | {math.sqrt(0.025):.4f} | {math.sqrt(0.0125):.4f} | 67 % |" in text


def test_collecting_prints_the_share(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    path = plan_file(tmp_path, methods=METHODS, num_labeled=[5], seeds=[0], ceiling="all_labels")
    for method, labels, dice in (("supervised", 5, 0.5), ("dbisl", 5, 0.6), ("all_labels", 160, 0.9)):
        finished_run(tmp_path, method, 0, {("a", "1"): dice, ("b", "1"): dice + 0.05}, labels=labels)
    main(str(path), str(tmp_path), collect_only=True)
    assert "| dbisl | 25 % (25 % to 25 %) |" in capsys.readouterr().out
