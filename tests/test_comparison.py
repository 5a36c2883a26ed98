"""Tests of tools/comparison: plans, statistics against hand-computed values, processes, and a real comparison."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from comparisons import NAN, Programs, finished_run, plan_file, rows, some_runs
from conftest import ROOT, small
from scipy.stats import norm

from scripts import command
from scripts.evaluation import METRIC_NAMES
from tools.comparison.collect import case_values, failed_cases, result_rows
from tools.comparison.paired import case_differences, paired_test, summary
from tools.comparison.plan import PlanError, Run, read_plan
from tools.comparison.processes import Processes, last_lines
from tools.comparison.run import main
from tools.comparison.tables import write_report

PLANS = sorted((ROOT / "configs" / "plans").glob("*.json"))


@pytest.fixture(autouse=True)
def _in_the_bundles_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


# Plans


# What the paper's form owes to its normalisation and dropout, and what these cost labels only.
CONTROLS = {"dbisl_paper_group", "supervised_batch", "supervised_copy_paste"}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_shipped_plan_can_be_read_and_tunes_no_method_apart(path):
    plan = read_plan(path)
    assert plan.baseline == "dbisl" if path.stem.startswith("dbisl") else plan.baseline.startswith("supervised")
    assert len(plan.methods) >= 2
    # Labels only with DBiSL's network is a control: the network is all that a method may have to itself.
    methods = [method for name, method in plan.methods.items() if name not in CONTROLS]
    assert {key for method in methods for key in method.overrides} <= {"network_def#_target_"}
    assert len(json.loads(path.read_text())["about"]) > 20


def test_plan_becomes_runs_with_all_methods_of_a_seed_before_the_next(tmp_path):
    methods = {
        "supervised": {"configs": ["configs/methods/supervised.json"], "num_labeled": [5, 160]},
        "dbisl": {"overrides": {"base_filters": 2}},
    }
    plan = read_plan(plan_file(tmp_path, methods=methods))
    runs = plan.runs("out")
    assert [run.name for run in runs] == [
        *("supervised_5_0", "dbisl_5_0", "dbisl_20_0", "supervised_160_0"),
        *("supervised_5_1", "dbisl_5_1", "dbisl_20_1", "supervised_160_1"),
    ]
    assert runs[0].overrides == {"base_filters": 4, "max_iterations": 10}
    assert runs[1].overrides == {"base_filters": 2, "max_iterations": 10}


def test_arguments_of_a_run_are_those_of_the_bundles_commands():
    run = Run("m", 5, 1, ("configs/train.json", "m.json"), {"base_filters": 4}, Path("out/m_5_1"))
    training = run.arguments("training", "data", "cuda:1")
    assert training == {
        "run_id": "training",
        "config_file": ["configs/train.json", "m.json", "configs/record.json"],
        "base_filters": 4,
        "num_labeled": 5,
        "labeled_draw": 0,
        "seed": 1,
        "dataset_dir": "data",
        "output_dir": str(Path("out/m_5_1")),
        "ckpt_dir": str(Path("out/m_5_1/models")),
        "device": "$torch.device('cuda:1')",
    }
    evaluation = run.arguments("evaluation", "data")
    assert evaluation["config_file"][-1] == "configs/evaluate.json" and "device" not in evaluation


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"seeds": None}, r"keys missing: \['seeds'\]"),
        ({"sedes": [0]}, r"unknown: \['sedes'\]"),
        ({"seeds": []}, r"seeds is \[\]; it must be a list of whole numbers"),
        ({"num_labeled": [5, 5]}, r"num_labeled is \[5, 5\]; each number may be there once"),
        ({"baseline": "dtc"}, r"baseline is 'dtc'; it must be one of \['supervised', 'dbisl'\]"),
        ({"common": {"base_filter": 4}}, r"overrides \['base_filter'\], ids that none of its config files has"),
        ({"common": {"seed": 4}}, r"overrides \['seed'\], which the comparison sets for each run"),
        ({"methods": {"supervised": ["configs/methods/none.json"]}}, "needs configs/methods/none.json, which does not"),
        ({"common": {"evaluation_list": "tset"}}, "evaluation_list is 'tset'; it must be one of test, validation"),
        ({"methods": {"supervised": {"config": []}}}, r"it must be a list of overlay files or an object"),
        ({"configs": []}, "configs/train.json first"),
        ({"configs": ["configs/budgets/cpu.json", "configs/train.json"]}, "begin with configs/budgets/cpu.json"),
        ({"methods": {"a/b": []}, "baseline": "a/b"}, "'a/b' is no name for a method"),
    ],
)
def test_plan_that_cannot_work_is_refused_and_the_error_says_why(tmp_path, changes, text):
    with pytest.raises(PlanError, match=text):
        read_plan(plan_file(tmp_path, **changes))


def test_missing_or_broken_plan_is_refused(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PlanError, match="is not valid JSON"):
        read_plan(tmp_path / "broken.json")


def test_folder_with_a_run_of_other_settings_is_refused_and_one_on_another_device_is_not(tmp_path):
    run = Run("m", 5, 0, ("configs/train.json",), {"max_iterations": 10}, tmp_path)
    (tmp_path / "training.json").write_text(json.dumps(run.arguments("training", "data", "cuda:1")))
    other = Run("m", 5, 0, ("configs/train.json",), {"max_iterations": 20}, tmp_path)
    other.check_settings("data")  # broken off before its first checkpoint: it begins anew
    for left in ("checkpoints/checkpoint_iteration_5.pt", "record.json"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_text("{}")
        run.check_settings("elsewhere")
        with pytest.raises(PlanError, match="other settings: max_iterations was 10 and is 20"):
            other.check_settings("data")
        (tmp_path / left).unlink()


def test_settings_of_the_evaluation_do_not_reach_training_and_may_change_with_the_evaluation(tmp_path):
    overrides = {"base_filters": 4, "evaluation_list": "validation", "decoders": "phi"}
    run, _ = read_plan(plan_file(tmp_path, common=overrides, num_labeled=[5], seeds=[0])).runs(tmp_path)
    training, evaluation = (run.arguments(run_id, "data") for run_id in ("training", "evaluation"))
    assert not {"evaluation_list", "decoders"} & set(training) and training["base_filters"] == 4
    assert (evaluation["evaluation_list"], evaluation["decoders"]) == ("validation", "phi")
    finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5})
    for run_id, arguments in (("training", training), ("evaluation", evaluation)):
        (run.folder / f"{run_id}.json").write_text(json.dumps(arguments))
    run.check_settings("elsewhere")
    plan = read_plan(plan_file(tmp_path, common={"base_filters": 4}, num_labeled=[5], seeds=[0]))
    assert "deviation over the validation cases," in write_report(plan, plan.runs(tmp_path), tmp_path)
    on_test = plan.runs(tmp_path)[0]
    on_test.check_settings("data", evaluate_again=True)
    with pytest.raises(PlanError, match="with other settings: .*evaluation_list was 'validation' and is None"):
        on_test.check_settings("data")


# Statistics


def test_summary_of_two_seeds_has_the_hand_computed_values():
    result = summary({(0, 0): {"a": 0.6, "b": 0.8}, (0, 1): {"a": 0.8, "b": 0.9}})
    # Cases averaged over seeds: 0.7 and 0.85; seeds averaged over cases: 0.7 and 0.85, too.
    assert result == {
        "mean": pytest.approx(0.775),
        "std_cases": pytest.approx(0.15 / math.sqrt(2)),
        "std_runs": pytest.approx(0.15 / math.sqrt(2)),
        "std_draws": None,
        "std_seeds": pytest.approx(0.15 / math.sqrt(2)),
        "cases": 2,
        "runs": 2,
        "draws": 1,
    }


def test_summary_leaves_out_what_does_not_exist():
    result = summary({(0, 0): {"a": 1.0, "b": NAN, "c": NAN}, (0, 1): {"a": 3.0, "b": 5.0, "c": NAN}})
    # a: 2, b: 5; the seeds' means: 1 and 4.
    assert (result["mean"], result["cases"], result["runs"]) == (3.5, 2, 2)
    assert result["std_cases"] == pytest.approx(3 / math.sqrt(2)) == result["std_runs"]
    single = summary({(0, 0): {"a": 1.0}})
    assert (single["std_cases"], single["std_runs"]) == (None, None)
    assert summary({(0, 0): {"a": NAN}})["mean"] is None


def test_differences_are_taken_run_by_run_and_case_by_case():
    method = {
        (0, 0): {"a": 0.9, "b": 0.5, "only here": 1.0},
        (0, 1): {"a": 0.7, "b": NAN},
        (1, 0): {"a": 0.0, "b": 0.0},
    }
    baseline = {(0, 0): {"a": 0.5, "b": 0.6}, (0, 1): {"a": 0.5, "b": 0.1}}
    # a: (0.4 + 0.2) / 2; b: -0.1 of the one seed in which both exist; draw 1 has no baseline.
    assert case_differences(method, baseline) == pytest.approx({"a": 0.3, "b": -0.1})
    assert case_differences({(0, 0): {"a": 1.0}}, {(1, 0): {"a": 1.0}}) == {}


def test_paired_test_has_the_hand_computed_values():
    baseline = {(0, 0): {f"case {i}": 0.5 for i in range(5)}}
    method = {(0, 0): {f"case {i}": 0.5 + d for i, d in enumerate((0.1, 0.2, -0.05, 0.3, 0.4))}}
    result = paired_test(method, baseline, higher_is_better=True)
    # Ranks 2, 3, 1, 4, 5; those of the negative ones add up to 1. Of 32 signs, {} and {1} are as low: p = 2 * 2 / 32.
    assert result["p_value"] == pytest.approx(4 / 32)
    assert result["difference"] == pytest.approx(0.19)
    # Deviations from the mean: -0.09, 0.01, -0.24, 0.11, 0.21.
    assert result["standard_error"] == pytest.approx(math.sqrt(0.1220 / 4 / 5))
    assert (result["pairs"], result["better"]) == (5, 4)
    assert paired_test(method, baseline, higher_is_better=False)["better"] == 1


def test_paired_test_of_many_cases_is_the_normal_approximation():
    # 60 differences 1, -2, 3, -4, ..., without ties: W+ is the sum of the odd numbers, 900.
    differences = {f"{i}": float(i if i % 2 else -i) for i in range(1, 61)}
    result = paired_test({(0, 0): differences}, {(0, 0): dict.fromkeys(differences, 0.0)}, higher_is_better=True)
    mean, variance = 60 * 61 / 4, 60 * 61 * 121 / 24
    assert result["p_value"] == pytest.approx(2 * norm.cdf((900 - mean) / math.sqrt(variance)), rel=1e-6)


def test_paired_test_of_equal_results_has_p_one_and_of_nothing_none():
    same = {(0, 0): {"a": 0.5, "b": 0.6}}
    assert paired_test(same, same, higher_is_better=True)["p_value"] == 1.0
    nothing = paired_test({}, same, higher_is_better=True)
    assert (nothing["pairs"], nothing["p_value"], nothing["difference"]) == (0, None, None)
    assert paired_test({(0, 0): {"a": 1.0}}, same, higher_is_better=True)["standard_error"] is None


# Collecting


TWO_CLASSES = {("a", "1"): 0.8, ("a", "2"): 0.6, ("b", "1"): 0.4, ("b", "2"): 0.0}


def test_rows_of_a_run_are_its_summary_with_its_settings_and_record(tmp_path):
    run = finished_run(tmp_path, "m", 3, TWO_CLASSES, iterations=10, torch="2.13.0", git_commit=None)
    table = {row["class"]: row for row in result_rows(run)}
    assert list(table) == ["1", "2", "all"]
    assert float(table["1"]["dice"]) == pytest.approx(0.6) and table["2"]["empty_predictions"] == "1"
    assert float(table["all"]["dice"]) == pytest.approx((0.7 + 0.2) / 2)
    assert float(table["2"]["hd95_mm"]) == pytest.approx(4.0) and table["2"]["hd95_mm_n"] == "1"
    for row in table.values():
        assert (row["method"], row["num_labeled"], row["seed"]) == ("m", 5, 3)
        assert (row["configs"], json.loads(row["overrides"])) == ("configs/train.json", {"base_filters": 4})
        assert (row["iterations"], row["torch"], row["peak_memory_mb"]) == (10, "2.13.0", None)


def test_case_values_have_the_mean_over_the_classes_of_each_case_and_no_distance_where_one_has_none(tmp_path):
    values = case_values(finished_run(tmp_path, "m", 0, TWO_CLASSES))
    assert values["all"]["dice"] == pytest.approx({"a": 0.7, "b": 0.2})
    assert values["all"]["hd95_mm"] == pytest.approx({"a": 3.0, "b": NAN}, nan_ok=True)
    one = finished_run(tmp_path, "one", 0, {("a", "1"): 0.5})
    assert list(case_values(one)) == ["1"]


def test_report_holds_every_figure_and_names_what_is_missing(tmp_path):
    plan = read_plan(plan_file(tmp_path, num_labeled=[5]))
    runs = plan.runs(tmp_path)
    for seed in (0, 1):
        finished_run(tmp_path, "supervised", seed, {("a", "1"): 0.5, ("b", "1"): 0.6 + 0.1 * seed})
    finished_run(tmp_path, "dbisl", 0, {("a", "1"): 0.7, ("b", "1"): 0.65})
    text = write_report(plan, runs, tmp_path)
    assert "| supervised | 5 | 2 | 0.575 +- 0.106 (0.035) |" in text
    # Of the one seed that both have: +0.2 and +0.05.
    assert "| dbisl | 5 | 1 | 0.675 +- 0.035 (-) |" in text and "| +0.125 +- 0.075 | 0.5 | 2 of 2 |" in text
    assert text.rstrip().endswith("Not finished: dbisl_5_1")
    assert (tmp_path / "comparison.md").read_text() == text
    assert len(rows(tmp_path / "results.csv")) == 3
    table = rows(tmp_path / "comparison.csv")
    (line,) = [row for row in table if row["method"] == "dbisl" and row["metric"] == "dice"]
    assert (float(line["difference"]), float(line["p_value"])) == (pytest.approx(0.125), 0.5)
    # Closer by every metric: a higher overlap, a lower distance.
    better = {row["metric"]: row["better"] for row in table if row["method"] == "dbisl"}
    assert better == dict.fromkeys(METRIC_NAMES, "2")
    for picture in ("dice.png", "differences.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_report_says_how_many_cases_have_a_distance(tmp_path):
    plan = read_plan(plan_file(tmp_path, num_labeled=[5]))
    finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5, ("b", "1"): 0.0})
    finished_run(tmp_path, "dbisl", 0, {("a", "1"): 0.0, ("b", "1"): 0.0})
    text = write_report(plan, plan.runs(tmp_path), tmp_path)
    assert "| 5.00 +- - (-), 1 of 2 cases |" in text
    assert "| dbisl | 5 | 1 | 0.000 +- 0.000 (-) | 0.000 +- 0.000 (-) | - | - |" in text


def fail_cases(run: Run, **reasons: str) -> None:
    """Writes the failures.csv of an evaluation."""
    with (run.folder / "failures.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "reason"))
        writer.writerows((f"data/images/{case}.nii.gz", reason) for case, reason in reasons.items())


def test_failed_cases_are_named_and_figures_and_differences_are_those_of_the_others(tmp_path):
    plan = read_plan(plan_file(tmp_path, num_labeled=[5], seeds=[0]))
    supervised = finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5, ("b", "1"): 0.6, ("c", "1"): 0.1})
    dbisl = finished_run(tmp_path, "dbisl", 0, {("a", "1"): 0.7, ("b", "1"): 0.65})
    fail_cases(dbisl, c="DataError: c has no label, at all", d="OSError: no such file")
    fail_cases(supervised, d="OSError: no such file")
    text = write_report(plan, plan.runs(tmp_path), tmp_path)
    assert "deviation over the test cases," in text
    assert "- c, in dbisl_5_0: DataError: c has no label, at all\n" in text
    assert "- d, in all runs: OSError: no such file\n" in text
    assert "| supervised | 5 | 1 | 0.400 +- 0.265 (-), 3 of 4 cases |" in text
    assert "| dbisl | 5 | 1 | 0.675 +- 0.035 (-), 2 of 4 cases |" in text
    # a and b, which both have: +0.2 and +0.05.
    assert "| +0.125 +- 0.075, 2 of 4 cases | 0.5 | 2 of 2 |" in text
    assert "Evaluated on different cases" not in text and "Not finished" not in text
    assert [row["failed_cases"] for row in rows(tmp_path / "results.csv")] == ['["d"]', '["c", "d"]']
    dice = [row for row in rows(tmp_path / "comparison.csv") if row["metric"] == "dice"]
    assert [(row["cases"], row["all_cases"], row["pairs"]) for row in dice] == [("3", "4", ""), ("2", "4", "2")]


def describe(run: Run, *starts: dict[str, tuple[int, str]]) -> None:
    """Writes the run.json of a training with the numbers and digests of its lists."""
    data = [{name: {"cases": n, "digest": digest} for name, (n, digest) in start.items()} for start in starts]
    (run.folder / "run.json").write_text(json.dumps({"starts": [{"data": lists} for lists in data], "config": {}}))


def test_runs_on_different_data_are_named_with_what_each_has(tmp_path):
    methods = {name: ["configs/methods/supervised.json"] for name in ("supervised", "old", "new", "unknown")}
    plan = read_plan(plan_file(tmp_path, methods=methods, num_labeled=[5], seeds=[0]))
    runs = {}
    for name in methods:
        cases = {("a", "1"): 0.5, ("b", "1"): 0.6} | ({} if name == "new" else {("c", "1"): 0.7})
        runs[name] = finished_run(tmp_path, name, 0, cases)
    describe(runs["supervised"], {"labeled": (5, "aa"), "unlabeled": (0, "none")})
    describe(runs["old"], {"labeled": (5, "aa"), "unlabeled": (15, "bb")})
    describe(
        runs["new"], {"labeled": (5, "aa"), "unlabeled": (15, "bb")}, {"labeled": (5, "cc"), "unlabeled": (15, "bb")}
    )
    text = write_report(plan, plan.runs(tmp_path), tmp_path)
    # Labels only take no unlabeled case, and of a run without a run.json nothing is known.
    assert (
        "**Trained on different data** (5 labels, labeled cases): 5 cases of digest aa in supervised_5_0, old_5_0; "
        "5 cases of digest aa, then 5 cases of digest cc in new_5_0." in text
    )
    assert "unlabeled cases" not in text
    assert (
        "**Evaluated on different cases**: 3 cases in supervised_5_0, old_5_0, unknown_5_0; 2 cases (without c) in "
        "new_5_0." in text
    )
    assert "| new | 5 | 1 | 0.550 +- 0.071 (-), 2 of 3 cases |" in text
    assert "| old | 5 | 1 | 0.600 +- 0.100 (-) |" in text


def test_unlabeled_cases_that_differ_are_named_and_equal_data_are_not(tmp_path):
    plan = read_plan(plan_file(tmp_path, num_labeled=[5], seeds=[0]))
    runs = [finished_run(tmp_path, method, 0, {("a", "1"): 0.5}) for method in ("supervised", "dbisl")]
    for digest in ("bb", "cc"):
        for run, unlabeled in zip(runs, ("bb", digest)):
            describe(run, {"labeled": (5, "aa"), "unlabeled": (15, unlabeled)})
        text = write_report(plan, plan.runs(tmp_path), tmp_path)
        assert ("(5 labels, unlabeled cases): 15 cases of digest bb in supervised_5_0;" in text) is (digest == "cc")
        assert ("different" in text) is (digest == "cc")


def test_case_of_which_a_class_is_not_known_is_none_that_is_missing(tmp_path):
    plan = read_plan(plan_file(tmp_path, num_labeled=[5], seeds=[0]))
    finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5, ("b", "1"): NAN})
    assert "| supervised | 5 | 1 | 0.500 +- - (-) |" in write_report(plan, plan.runs(tmp_path), tmp_path)


# Processes, with small programs in place of training and evaluation


# An evaluation of which case b failed.
FAILING = """
if run_id == 'evaluation':
    (folder / 'failures.csv').write_text('case,reason\\nimages/b.nii.gz,DataError: no such file\\n')
    (folder / 'metrics.csv').write_text('case,class\\na,1\\n')
    (folder / 'metrics_summary.csv').touch()
    raise SystemExit(1)
"""


def test_failed_run_is_reported_with_the_end_of_its_log_and_the_others_go_on(tmp_path, capsys):
    processes = Programs("data")
    processes.source = "print(run_id); assert 'bad' not in folder.name, 'this went wrong'"
    runs = some_runs(tmp_path, "bad", "good")
    assert processes(runs) == [runs[0]]
    output = capsys.readouterr().out
    assert "bad_5_0 FAILED with exit status 1" in output and "AssertionError: this went wrong" in output
    assert re.search(rf"^\[2/2\] good_5_0: \d+ s, in {runs[1].folder}$", output, re.MULTILINE)
    assert not re.search("bad_5_0 ?\\.\\.\\.", output)
    log = (tmp_path / "good_5_0" / "run.log").read_text().splitlines()
    assert [line for line in log if line in ("training", "evaluation")] == ["training", "evaluation"]


def test_run_that_was_trained_is_only_evaluated_and_old_results_do_not_outlive_a_new_training(tmp_path):
    (run,) = some_runs(tmp_path, "m")
    processes = Programs("data")
    processes.source = "print(run_id, [f.name for f in sorted(folder.glob('*.csv'))])"
    run.folder.mkdir()
    for name in ("metrics.csv", "metrics_summary.csv", "failures.csv"):
        (run.folder / name).touch()
    assert processes([run]) == []
    assert "training []\n" in (run.folder / "run.log").read_text()
    (run.folder / "metrics_summary.csv").unlink()
    processes([run])
    log = (run.folder / "run.log").read_text()
    assert (log.count("\ntraining"), log.count("\nevaluation")) == (1, 2)


def test_evaluation_with_failed_cases_is_finished_without_them(tmp_path, capsys):
    (run,) = some_runs(tmp_path, "m")
    processes = Programs("data")
    processes.source = FAILING
    assert processes([run]) == [] and run.finished
    printed = capsys.readouterr().out
    assert printed.startswith("[1/1] m_5_0: ") and printed.endswith("without the cases that FAILED: b\n")
    assert failed_cases(run) == {"b": "DataError: no such file"}


def test_evaluation_of_which_every_case_failed_is_not_finished(tmp_path, capsys):
    (run,) = some_runs(tmp_path, "m")
    processes = Programs("data")
    processes.source = FAILING.replace("\\na,1", "")
    assert processes([run]) == [run] and not run.finished
    assert "m_5_0 FAILED with exit status 1" in capsys.readouterr().out


def test_evaluation_with_other_settings_that_breaks_off_leaves_no_results_of_the_earlier_ones(tmp_path):
    (run,) = some_runs(tmp_path, "m")
    processes = Programs("data")
    assert processes([run]) == [] and run.finished
    other = replace(run, overrides={"evaluation_list": "validation"}, of_evaluation=frozenset({"evaluation_list"}))
    processes.source = "raise SystemExit(1)"
    assert processes([other]) == [other] and run.trained and not run.finished


def test_evaluation_that_breaks_off_is_not_taken_for_an_earlier_one_that_is_still_there(tmp_path, capsys):
    (run,) = some_runs(tmp_path, "m")
    processes = Programs("data")
    processes.source = "print('this is', run_id)" + FAILING
    assert processes([run]) == []
    processes.source = "raise SystemExit(f'no dataset.json for {run_id}')"
    assert processes([run]) == [run]
    # It was trained, and is only evaluated.
    assert "no dataset.json for evaluation" in capsys.readouterr().out
    assert (run.folder / "run.log").read_text().count("this is training") == 1


@pytest.mark.parametrize("devices", [(None,), ("cpu", "cuda:0")])
def test_as_many_processes_at_a_time_as_devices(tmp_path, devices):
    processes = Programs("data", devices=devices, threads=3)
    # Each training waits for the other; only side by side can both see it running, and see that the other saw it.
    processes.source = f"""
import os, time
print("threads", os.environ["OMP_NUM_THREADS"])
def both(name):
    for _ in range({4000 if len(devices) == 2 else 20}):
        if all((folder.parent / run / name).exists() for run in ("a_5_0", "b_5_0")):
            return True
        time.sleep(0.025)
(folder / "running").touch()
if run_id == "training" and both("running"):
    (folder / "together").touch()
    both("together")
if run_id == "evaluation":
    (folder / "running").unlink()
"""
    runs = some_runs(tmp_path, "a", "b")
    assert processes(runs) == []
    assert [(run.folder / "together").exists() for run in runs] == [len(devices) == 2] * 2
    assert "threads 3" in (runs[0].folder / "run.log").read_text()
    used = {json.loads((run.folder / "training.json").read_text()).get("device") for run in runs}
    assert used == ({None} if devices == (None,) else {"$torch.device('cpu')", "$torch.device('cuda:0')"})


def test_interrupt_ends_the_running_process_and_starts_no_other(tmp_path, request):
    # A shell's background jobs ignore SIGINT; so would this test's process.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first, second = some_runs(tmp_path, "a", "b")
    processes = Programs("data")
    processes.source = "import os, time; (folder / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    pid = first.folder / "pid"

    def interrupt() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        processes([first, second])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not second.folder.exists() and not first.trained


@pytest.mark.parametrize("run_id", ["training", "evaluation"])
def test_the_command_of_a_run_hands_its_settings_to_the_workflow(tmp_path, monkeypatch, run_id):
    (run,) = some_runs(tmp_path, "m")
    arguments = run.arguments(run_id, str(tmp_path), "cpu")
    (tmp_path / "a.json").write_text(json.dumps(arguments), encoding="utf-8")
    given = []
    monkeypatch.setattr("scripts.workflow.run_workflow", given.append)
    monkeypatch.setattr(sys, "argv", ["scripts"])
    for verbose in (False, True):
        program, *words = Processes("data", verbose=verbose).command(run_id, tmp_path / "a.json")
        assert Path(program) == ROOT / "scripts"
        command.main(words)
    assert given == [arguments, {**arguments, "verbose": "true"}]


def test_last_lines_of_a_log_keep_the_last_state_of_a_progress_bar(tmp_path):
    log = tmp_path / "run.log"
    log.write_bytes(b"first\n 10%\r 20%\r 30%\r\n\nerror: \xff\n")
    assert last_lines(log, 2) == "     30%\n    error: \ufffd"


# The command


def test_collecting_alone_needs_no_data_and_runs_nothing(tmp_path, capsys):
    plan = plan_file(tmp_path, num_labeled=[5], seeds=[0])
    with pytest.raises(SystemExit) as ended:
        main(str(plan), str(tmp_path), collect_only=True)
    assert ended.value.code == 1 and "none of the 2 runs" in capsys.readouterr().err
    finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5})
    main(str(plan), str(tmp_path), collect_only=True)
    assert "Not finished: dbisl_5_0" in capsys.readouterr().out
    with pytest.raises(PlanError, match="dataset_dir is not given"):
        main(str(plan), str(tmp_path))


def test_command_skips_a_run_that_lacks_a_case_names_it_and_ends_with_an_error(tmp_path, capsys, monkeypatch):
    carried_out = []
    monkeypatch.setattr(
        "tools.comparison.run.Processes", lambda *_, **__: lambda runs: carried_out.append(runs) or runs[2:]
    )
    plan = plan_file(tmp_path, num_labeled=[5], seeds=[0])
    for method in ("supervised", "dbisl"):
        fail_cases(finished_run(tmp_path, method, 0, {("a", "1"): 0.5}), b="DataError: b is empty")
    for options in ({}, {"evaluate_again": True}, {"collect_only": True}):
        with pytest.raises(SystemExit) as ended:
            main(str(plan), str(tmp_path), "data", **options)
        printed = capsys.readouterr()
        assert ended.value.code == 1
        assert "error: b failed in the evaluation of supervised_5_0, dbisl_5_0;" in printed.err
        assert "- b, in all runs: DataError: b is empty" in (tmp_path / "comparison.md").read_text()
        assert ("DataError" in printed.out) == ("collect_only" in options) and f"in {tmp_path}:" in printed.out
    # Not trained again, and evaluated again on request only.
    assert [[run.name for run in runs] for runs in carried_out] == [[], ["supervised_5_0", "dbisl_5_0"]]


@pytest.mark.long
def test_comparison_of_real_trainings_survives_a_failing_method_and_case_and_skips_what_is_done(
    tiny_copy, tmp_path, capsys
):
    lost = tiny_copy / "images" / "test_1.nii.gz"
    content = lost.read_bytes()
    lost.write_bytes(b"no image")
    common = {key: value for key, value in small(tiny_copy, tmp_path).items() if not key.endswith("_dir")}
    common = {key: value for key, value in common.items() if key not in ("device", "num_labeled")}
    supervised = ["configs/methods/supervised.json"]
    methods = {
        "broken": {"configs": supervised, "overrides": {"labeled_batch_size": 0}},
        "supervised": supervised,
    }
    settings = {"num_labeled": [3], "seeds": [0], "common": {**common, "spacing": None}}
    plan, output = plan_file(tmp_path, methods=methods, **settings), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(str(plan), str(output), str(tiny_copy), devices=["cpu"], threads=1)
    printed = capsys.readouterr()
    assert ended.value.code == 1 and "error: 1 of 2 runs failed: broken_3_0" in printed.err
    assert "error: test_1 failed in the evaluation of supervised_3_0;" in printed.err
    assert "- test_1, in all runs: DataError:" in (output / "comparison.md").read_text()
    log = (output / "supervised_3_0" / "run.log").read_text()
    assert "Preflight" in log and not re.search("UserWarning|input summary|Not all config files", log)
    dice = float(rows(output / "supervised_3_0" / "validation_log.csv")[-1]["val_mean_dice"])
    assert f"supervised_3_0: validation Dice {dice:.3f}, " in printed.out
    assert "labeled_batch_size must be at least 1" in printed.out
    (row,) = rows(output / "results.csv")
    assert (row["method"], row["iterations"], row["threads"]) == ("supervised", "4", "1")
    assert int(row["parameters"]) > 0 and float(row["training_seconds"]) > 0 and float(row["peak_memory_mb"]) > 100
    assert row["dice_n"] == "1" and 0 <= float(row["dice"]) <= 1
    weights = output / "supervised_3_0" / "models" / "model.pt"
    before = weights.stat().st_mtime_ns

    plan = plan_file(tmp_path, methods={"supervised": supervised}, **settings)
    lost.write_bytes(content)
    main(str(plan), str(output), str(tiny_copy), devices=["cpu"], threads=1, evaluate_again=True)
    main(str(plan), str(output), str(tiny_copy), devices=["cpu"], threads=1)
    assert "1 runs, 1 of them done before and skipped" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
    (row,) = rows(output / "results.csv")
    assert (row["dice_n"], row["failed_cases"]) == ("2", "[]")
