"""Tests of scripts/evaluation/summary.py: hand-computed means, and bootstrap intervals against all resamples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scripts.evaluation import METRIC_NAMES, summarize
from scripts.evaluation.summary import SUMMARY_COLUMNS, confidence_interval


def row(case, name, dice, distance, *, empty=False):
    values = {key: dice if key in ("dice", "jaccard", "surface_dice") else distance for key in METRIC_NAMES}
    return {"case": case, "class": name, **values, "empty_prediction": empty}


def pick(summary, name, metric):
    (line,) = [line for line in summary if line["class"] == name and line["metric"] == metric]
    return line


def test_std_is_the_sample_standard_deviation():
    summary = summarize([row(str(i), "1", dice, 0.0) for i, dice in enumerate((0.2, 0.4, 0.9))])
    line = pick(summary, "1", "dice")
    assert line["mean"] == pytest.approx(0.5)
    assert line["std"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert len(summary) == len(METRIC_NAMES)


def test_one_finite_value_has_no_std_nor_interval_and_none_has_no_mean():
    rows = [row("a", "1", 0.0, math.nan, empty=True), row("b", "1", 0.0, math.nan)]
    line = pick(summarize(rows), "1", "asd_mm")
    assert (line["mean"], line["std"], line["n"], line["empty_predictions"]) == (None, None, 0, 1)
    assert line["ci95_low"] is line["ci95_high"] is None
    line = pick(summarize([*rows, row("c", "1", 1.0, 3.0)]), "1", "asd_mm")
    assert (line["mean"], line["std"], line["n"], line["empty_predictions"]) == (3.0, None, 1, 1)
    assert line["ci95_low"] is line["ci95_high"] is None


def test_all_averages_each_case_over_its_finite_classes_before_the_mean_over_cases():
    rows = [row("a", "1", 1.0, 2.0), row("a", "2", 0.0, math.nan, empty=True)]
    rows += [row("b", "1", 0.8, 4.0), row("b", "2", 0.6, 8.0)]
    line = pick(summarize(rows), "all", "hd95_voxel")
    # Case a: 2, case b: (4 + 8) / 2 = 6. A mean over all finite values would be 14 / 3.
    assert (line["mean"], line["n"], line["empty_predictions"]) == (4.0, 2, 1)
    assert line["std"] == pytest.approx(math.sqrt(8))
    assert pick(summarize(rows), "all", "dice")["mean"] == pytest.approx((0.5 + 0.7) / 2)


def test_rows_have_the_columns_of_the_file():
    assert all(tuple(line) == SUMMARY_COLUMNS for line in summarize([row("a", "1", 1.0, 0.0)]))


def test_interval_is_that_of_the_means_of_all_resamples():
    values = [0.1, 0.55, 0.6, 0.82, 0.9]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=5)]  # all 3125, equally likely
    low, high = confidence_interval(values)
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)
    narrow = confidence_interval(values, level=0.5)
    assert narrow == pytest.approx(np.quantile(means, (0.25, 0.75)), abs=0.01)


def test_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(3).normal(size=12).tolist()
    assert confidence_interval(values) == confidence_interval(values)
    assert confidence_interval(values) != confidence_interval(values, seed=1)


def test_equal_values_have_an_interval_without_width():
    assert confidence_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_interval_of_all_classes_draws_cases_and_not_rows():
    # In each case the two classes cancel: the mean of every resample of cases is 1/2, of rows it is not.
    rows = [row(case, name, dice, 0.0) for case in "abcd" for name, dice in (("1", 1.0), ("2", 0.0))]
    line = pick(summarize(rows), "all", "dice")
    assert (line["ci95_low"], line["ci95_high"], line["n"]) == (0.5, 0.5, 4)


def test_interval_of_a_class_leaves_its_missing_distances_out():
    rows = [row(case, "1", 0.0, distance) for case, distance in (("a", 2.0), ("b", 4.0), ("c", math.nan))]
    line = pick(summarize(rows), "1", "hd95_mm")
    assert (line["mean"], line["ci95_low"], line["ci95_high"], line["n"]) == (3.0, 2.0, 4.0, 2)
