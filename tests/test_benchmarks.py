"""Tests of benchmarks/: every group runs at the smallest scale, and what it counts is what it says."""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, small
from torch import nn

from benchmarks import dynamics, run
from benchmarks.iteration import flops_of
from benchmarks.measure import clock, medians
from benchmarks.share import Waited, network_step
from scripts.allocation import CHOSEN_BY_USER

GROUPS = "transform,share,method,layers,variants,inference,volumes,cache,stream,preparation,preflight"
# Those that measure in processes of their own, for which no other group is a test.
PROCESS_GROUPS = "allocation,processes,start"


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch):
    """The command switches logging off for its process, which here is that of the tests."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.root.manager.disable)


def test_one_command_measures_every_group_and_writes_table_and_json(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(Path(run.__file__).parents[1])
    file = tmp_path / "benchmarks.json"
    run.main(repeats=1, iterations=2, only=GROUPS, output=str(file), device="cpu", scale="small")
    content = json.loads(file.read_text())
    assert content["machine"]["device"] == "cpu" and content["machine"]["scale"] == "small"
    works = " ".join(row["work"] for row in content["rows"])
    for part in ("exact, factor 1", "cascade, factor 0.5", "iteration of the bundle", "one iteration of DBiSL"):
        assert part in works
    for part in ("mixed precision", "one decoder", "preflight of 4 volumes"):
        assert part in works
    for row in content["rows"]:
        assert row["ours_s"] > 0 and row["ratio"] == pytest.approx(row["ours_s"] / row["reference_s"])
    (share,) = (row for row in content["rows"] if row["work"].startswith("iteration of the bundle"))
    assert all(word in share["accuracy"] for word in ("share 0.", "wait for crops 0.", "GFLOP/s", "17000 iterations"))
    printed = capsys.readouterr().out
    assert all(f"| {row['work']} |" in printed for row in content["rows"])


@pytest.mark.long
def test_groups_in_processes_of_their_own_measure_what_they_say(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for name in CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "benchmarks.json"
    run.main(repeats=1, iterations=2, only=PROCESS_GROUPS, output=str(file), device="cpu", scale="small")
    rows = json.loads(file.read_text())["rows"]
    assert all(row["ours_s"] > 0 and row["reference_s"] > 0 for row in rows)
    works = " ".join(row["work"] for row in rows)
    for part in ("iteration of DBiSL", "inference of 24x24x16", "iteration in two processes", "imports of inference"):
        assert part in works


@pytest.mark.parametrize("given, text", [({"only": "speed"}, "the groups are transform"), ({"scale": "tiny"}, "gpu")])
def test_unknown_group_and_scale_are_refused_with_those_that_there_are(given, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        run.main(**given, output=str(tmp_path / "benchmarks.json"))


def test_operations_of_a_convolution_are_those_counted_by_hand():
    convolution = nn.Conv3d(2, 3, 3, padding=1)
    # Two for every product that is added, 27 taps, 2 channels in and 3 out, 64 voxels.
    assert flops_of(lambda: convolution(torch.zeros(1, 2, 4, 4, 4))) == 2 * 27 * 2 * 3 * 64


def test_medians_are_of_interleaved_repeats():
    calls: list[str] = []
    medians({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "ababab"


def test_one_thread_is_timed_by_the_processor():
    start = clock()
    time.sleep(0.2)
    assert clock() - start < 0.1


def test_waited_loader_passes_batches_and_attributes_on():
    assert Waited(SimpleNamespace(batch_sampler="draws")).batch_sampler == "draws"
    waited = Waited([1, 2])
    batches = iter(waited)
    assert [next(batches), next(batches)] == [1, 2] and len(waited.seconds) == 2


def test_step_of_the_network_alone_leaves_the_weights_and_the_learning_rate():
    class Head(nn.Conv3d):
        def forward(self, x):
            return {"logits": super().forward(x)}

    network = Head(1, 1, 1)
    before = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.5)
    network_step(SimpleNamespace(network=network, optimizer=optimizer, amp=False), torch.ones(1, 1, 2, 2, 2))()
    assert all(map(torch.equal, before, network.parameters())) and optimizer.param_groups[0]["lr"] == 0.5
    assert all(weight.grad is not None for weight in network.parameters())


def test_arms_of_a_study_have_data_of_their_own_and_are_not_run_twice(tiny, tmp_path, capsys):
    """An arm without unlabeled crops, one with another augmentation, and one that fails beside them."""
    plan = tmp_path / "study.json"
    supervised = str(ROOT / "configs/methods/supervised.json")
    content = {
        "configs": [str(ROOT / "configs/train.json")],
        "common": small(tiny, tmp_path, val_interval=1, max_iterations=2),
        "num_labeled": [2],
        "draws": [0, 1],
        "seeds": [0],
        "arms": {
            "labels_only": {"configs": [supervised]},
            "turned": {"configs": [supervised, str(ROOT / "configs/augmentations/spatial.json")]},
            "failing": {"objective": None},
        },
    }
    plan.write_text(json.dumps(content))
    for _ in range(2):
        dynamics.main(str(plan), str(tiny), str(tmp_path / "out"))
    with (tmp_path / "out" / "study" / "dynamics.csv").open(newline="") as file:
        last = {(row["arm"], row["draw"]): row for row in csv.DictReader(file)}
    assert set(last) == {(arm, draw) for arm in ("labels_only", "turned") for draw in "01"}
    losses = set()
    for arm, draw in last:
        with (tmp_path / "out" / "study" / f"{arm}_2_{draw}_0" / "training_log.csv").open(newline="") as file:
            losses.add(next(csv.DictReader(file))["loss"])
    assert len(losses) == 4  # other cases, other crops
    with (tmp_path / "out" / "study" / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == 4 * 3 and {row["list"] for row in cases} == {"validation", "test"}
    assert (tmp_path / "out" / "study" / "failing_2_0_0" / "error.txt").is_file()
    assert capsys.readouterr().out.count("labels_only 2 0 0") == 1
