"""Tests of tools/active: orders worked out by hand, networks whose votes are known, corrections in real files."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import torch
from conftest import LABELED, ROOT, real_data, run_bundle, run_process
from test_doc_commands import execute, project  # noqa: F401
from test_self_training import expected_label, line, prediction, write_member

from benchmarks.active import area, interval, read_curves, table
from scripts.data import DataError, Datalist
from scripts.networks import VNet
from tools.active.accept import accept
from tools.active.gain import expected_gain, gain
from tools.active.propose import propose
from tools.active.rank import rank
from tools.active.strategies import order
from tools.ensemble import Member, agreements, uncertainty
from tools.preparation.segments import merged

# Labeled at 0; unlabeled at 1, 9 and 10: the farthest is 10, then 1 is farther from both than 9.
PLACES = np.array([[1.0], [9.0], [10.0]])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def members(tmp_path: Path, dataset: Path, **changes) -> list[str]:
    """Two trainings whose networks vote by thresholds; inference keeps all components of their masks."""
    runs = [write_member(tmp_path / name, first, dataset, **changes) for name, first in (("a", 0.9), ("b", 0.6))]
    for run in runs:
        path = run / "models" / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "largest_component": False}))
    return [str(run) for run in runs]


# --- orders ---


def test_orders_by_hand():
    options = {"doubt": [0.1, 0.9, 0.2], "features": PLACES, "labeled": np.array([[0.0]])}

    def cases(strategy: str, **changes) -> list[int]:
        return [step.case for step in order(strategy, **{**options, **changes})]

    assert cases("disagreement") == [1, 2, 0]
    steps = order("diversity", **options)
    assert [(step.case, step.nearest) for step in steps] == [(2, 3), (0, 3), (1, 2)]
    # Mean distance of the four points: (1 + 9 + 10 + 8 + 9 + 1) / 6.
    assert [step.distance for step in steps] == pytest.approx([10 / (38 / 6), 1 / (38 / 6), 1 / (38 / 6)])
    # Distance times rank in doubt: 1 * 1/3, 9 * 3/3, 10 * 2/3; then 1/3 and, beside the 9, 2/3.
    assert cases("combined") == [1, 2, 0]
    assert cases("diversity", labeled=np.empty((0, 1)))[0] == 1  # the mean is 6.7
    assert sorted(cases("random")) == [0, 1, 2]
    assert cases("random", seed=3) == cases("random", seed=3)
    assert len({tuple(cases("random", seed=seed)) for seed in range(9)}) > 1
    with pytest.raises(DataError, match="encoder"):
        cases("diversity", features=None)
    with pytest.raises(DataError, match="entropy"):
        cases("entropy")


def test_uncertainty_is_nought_where_all_are_sure_and_one_where_half_contradict():
    one = prediction(line([1.0, 1, 0.5, 0]), line([1.0, 0, 0.5, 0]))
    assert uncertainty([one]).flatten().tolist() == [0, 1, 1, 0]
    mapped = prediction(line([1.0, 0.0]), distances=(line([-0.1, -0.9]),))
    assert uncertainty([mapped]).flatten().tolist() == [0, 1]
    flipped = mapped._replace(distances=mapped.distances[:0], mirrored=line([1.0, 1.0])[None])
    assert uncertainty([flipped]).flatten().tolist() == [0, 1]
    assert agreements([flipped], flipped.probability)["mirrored"] == pytest.approx(2 / 3)


# --- ranking ---


def test_members_disagree_most_on_the_case_that_comes_first_and_broken_cases_come_last(tiny_copy, tmp_path):
    runs = members(tmp_path, tiny_copy)
    (tiny_copy / "images" / "training_4.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match="1 of 3 cases failed"):
        rank(runs, str(tiny_copy), str(tmp_path / "out"), strategy="disagreement")
    *found, broken = read(tmp_path / "out" / "ranking.csv")
    assert broken["case"] == "training_4" and broken["rank"] == "" and "training_4.nii.gz" in broken["reason"]
    means = []
    for row in found:
        kinds = [float(row[kind]) for kind in ("members", "decoders", "mask_distance")]
        assert row["mirrored"] == "" and f"members {kinds[0]:.2f}" in row["reason"]
        assert float(row["score"]) == pytest.approx(1 - np.mean(kinds), abs=1e-3)
        means.append(np.mean(kinds))
        assert (tmp_path / "out" / "pictures" / row["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert means == sorted(means) and [row["rank"] for row in found] == ["1", "2"]


def network_run(folder: Path, dataset: Path, **changes) -> Path:
    """A training of a V-Net with random weights, which encodes."""
    torch.manual_seed(0)
    run = write_member(folder, 0.9, dataset, **changes)
    network = VNet(base_filters=2, normalization="group", dropout=0.0)
    settings = json.loads((run / "models" / "model.json").read_text())
    arguments = {"base_filters": 2, "normalization": "group", "dropout": 0.0}
    settings["network_def"] = {"_target_": "scripts.networks.VNet", **arguments}
    (run / "models" / "model.json").write_text(json.dumps(settings))
    torch.save(network.state_dict(), run / "models" / "model.pt")
    return run


def test_diversity_compares_the_coarsest_features_of_labeled_and_unlabeled_cases(tiny, tmp_path):
    run = str(network_run(tmp_path / "a", tiny))
    case = Datalist(tiny).unlabeled(LABELED)[0]
    member = Member(run)
    windows: list[torch.Tensor] = []
    encode = member.stacked.network.encode
    member.stacked.network.encode = lambda x: windows.append(encode(x)[-1].mean((2, 3, 4))) or encode(x)
    found = member.predict(case)
    np.testing.assert_allclose(found.features, torch.cat(windows).mean(0), rtol=1e-5)
    assert found.features.shape == (32,) and found.mirrored is None and len(found.segmentations) == 1
    rank(run, str(tiny), str(tmp_path / "out"), strategy="diversity", pictures=False)
    rows = read(tmp_path / "out" / "ranking.csv")
    assert {row["case"] for row in rows} == {"training_3", "training_4", "training_5"}
    assert rows[0]["nearest"] in {"training_0", "training_1", "training_2"} and not (tmp_path / "out/pictures").exists()
    rank(run, str(tiny), str(tmp_path / "none"), strategy="diversity", pictures=False, num_labeled=0)
    first, *others = read(tmp_path / "none" / "ranking.csv")
    assert first["reason"] == "nearest to the mean of all" and first["nearest"] == "" and len(others) == 5
    with pytest.raises(DataError, match="--mirror"):
        rank(run, str(tiny), str(tmp_path / "more"), strategy="combined")
    rank(run, str(tiny), str(tmp_path / "more"), strategy="combined", mirror=True, pictures=False)
    assert all(0 <= float(row["mirrored"]) <= 1 for row in read(tmp_path / "more" / "ranking.csv"))


def test_mirror_images_are_mirrored_back(tiny, tmp_path):
    member = Member(network_run(tmp_path / "a", tiny), mirror=[0])
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        whole, plain = member.stacked(x), member.stacked.network(x)
        mirrored = member.stacked.network(x.flip(2)).flip(2)
    torch.testing.assert_close(whole[:, :1], (plain + mirrored) / 2)
    torch.testing.assert_close(whole[:, -2:], torch.cat([plain, mirrored], 1))


def test_strategies_without_what_they_need_are_refused(tiny, tmp_path):
    runs = members(tmp_path, tiny)
    with pytest.raises(DataError, match="diversity"):
        rank(runs, str(tiny), str(tmp_path / "out"), strategy="diversity", pictures=False)
    with pytest.raises(DataError, match="entropy"):
        rank(runs, str(tiny), str(tmp_path / "out"), strategy="entropy")
    assert not (tmp_path / "out" / "ranking.csv").exists()


# --- proposals and corrections ---


@pytest.fixture
def proposed(tiny, tmp_path) -> Path:
    """Proposals of all three unlabeled cases."""
    rank(members(tmp_path, tiny), str(tiny), str(tmp_path / "ranking"), strategy="disagreement", pictures=False)
    propose(str(tmp_path / "ranking"), str(tmp_path / "proposals"))
    return tmp_path / "proposals"


def test_proposals_lie_on_their_image_as_nifti_and_as_a_segmentation_of_slicer(tiny, proposed, tmp_path):
    for number in range(LABELED, 6):
        image = nibabel.load(tiny / f"images/training_{number}.nii.gz")
        mask, _ = expected_label(tiny, number, [0.9, 0.6])
        for folder in ("labels", "proposals"):
            file = nibabel.load(proposed / folder / f"training_{number}.nii.gz")
            np.testing.assert_allclose(file.affine, image.affine, atol=1e-4)
            np.testing.assert_array_equal(np.asarray(file.dataobj), mask)
        doubt = nibabel.load(proposed / "uncertainty" / f"training_{number}.nii.gz")
        assert doubt.shape == image.shape and 0 <= doubt.get_fdata().min() < doubt.get_fdata().max() <= 1
        path = proposed / "labels" / f"training_{number}.seg.nrrd"
        header = nrrd.read_header(str(path))
        label, _ = merged(path, {header["Segment0_Name"].lower(): 1}, image.shape, image.affine)
        np.testing.assert_array_equal(label, mask)
    with pytest.raises(DataError, match="proposals"):
        propose(str(tmp_path / "ranking"), str(proposed))
    with pytest.raises(DataError, match="training_0"):
        propose(str(tmp_path / "ranking"), str(tmp_path / "other"), cases=["training_0"])


def test_corrections_are_counted_and_listed_behind_the_labeled_cases(tiny, proposed, tmp_path):
    path = proposed / "labels" / "training_3.nii.gz"
    image = nibabel.load(path)
    after = np.asarray(image.dataobj).copy()
    before = after.copy()
    after[:3, :3, :3] = 1 - after[:3, :3, :3]
    nibabel.save(nibabel.Nifti1Image(after, image.affine, image.header), path)
    seg = proposed / "labels" / "training_4.seg.nrrd"
    array, header = nrrd.read(str(seg))
    array[...] = 0
    nrrd.write(str(seg), array, header)
    said = accept(str(proposed), str(tmp_path / "new"))
    rows = {row["case"]: row for row in read(tmp_path / "new" / "corrections.csv")}
    added, removed = int((after > before).sum()), int((before > after).sum())
    dice = 2 * int((after & before).sum()) / int(after.sum() + before.sum())
    first = rows["training_3"]
    assert (first["source"], first["accepted"]) == ("nifti", "True")
    assert (int(first["added"]), int(first["removed"])) == (added, removed) and added + removed == 27
    assert float(first["dice"]) == pytest.approx(dice, abs=1e-4)
    assert rows["training_4"]["source"] == "segmentation" and rows["training_4"]["voxels_after"] == "0"
    assert rows["training_5"]["accepted"] == "False" and "--num_labeled 5" in said
    assert "--config_file" not in said and "no config.json" in said  # of the first member
    new, old = Datalist(tmp_path / "new"), Datalist(tiny)
    labeled = new.labeled(5)
    assert [Path(case["image"]).name for case in labeled] == [f"training_{n}.nii.gz" for n in range(5)]
    assert all(Path(case["image"]).is_file() and Path(case["label"]).is_file() for case in labeled)
    np.testing.assert_array_equal(np.asarray(nibabel.load(labeled[3]["label"]).dataobj), after)
    assert [Path(case["image"]).resolve() for case in new.unlabeled(5)] == [
        Path(old.unlabeled(5)[0]["image"]).resolve()
    ]
    assert [Path(case["label"]).resolve() for case in new.test] == [Path(c["label"]).resolve() for c in old.test]
    accept(str(proposed), str(tmp_path / "all"), unchanged="accept")
    assert len(Datalist(tmp_path / "all").labeled(6)) == 6 and Datalist(tmp_path / "all").unlabeled(6) == []


@pytest.mark.parametrize("fault", ["grid", "value", "both", "segment", "gone", "broken"])
def test_wrong_corrections_are_refused_by_name_and_the_others_accepted(proposed, tmp_path, fault):
    path, seg = (proposed / "labels" / f"training_3.{ending}" for ending in ("nii.gz", "seg.nrrd"))
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    array, header = nrrd.read(str(seg))
    if fault == "grid":
        nibabel.save(nibabel.Nifti1Image(voxels[:-1], image.affine), path)
    elif fault == "value":
        voxels[0, 0, 0] = 7
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    elif fault == "both":
        voxels[0, 0, 0] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
        array[1, 1, 1] = 1 - array[1, 1, 1]
        nrrd.write(str(seg), array, header)
    elif fault == "segment":
        nrrd.write(str(seg), array, {**header, "Segment0_Name": "spleen"})
    elif fault == "gone":
        path.unlink()
        seg.unlink()
    else:
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="1 of 3 proposals"):
        accept(str(proposed), str(tmp_path / "new"), unchanged="accept")
    (row,) = [row for row in read(tmp_path / "new" / "corrections.csv") if row["case"] == "training_3"]
    assert row["accepted"] == "False" and "training_3" in row["reason"]
    assert len(Datalist(tmp_path / "new").labeled(5)) == 5


def test_nothing_accepted_leaves_no_list_and_a_data_set_is_not_overwritten(tiny, proposed, tmp_path):
    with pytest.raises(DataError, match="none of 3"):
        accept(str(proposed), str(tmp_path / "new"))
    assert not (tmp_path / "new" / "dataset.json").exists()
    with pytest.raises(DataError, match="output_dir"):
        accept(str(proposed), str(tiny))
    with pytest.raises(DataError, match="unchanged"):
        accept(str(proposed), str(tmp_path / "new"), unchanged="keep")


# --- expected gain ---


def test_gain_of_an_exact_power_law_is_found():
    runs = {n: [{str(case): 0.9 - 0.4 * n**-0.5 + case / 100 for case in (-1, 0, 1)}] for n in (2, 4, 8, 16)}
    found = expected_gain(runs, 16)
    expected = 0.4 * (16**-0.5 - 32**-0.5)
    assert found.gain == pytest.approx(expected, abs=1e-3) and found.now == pytest.approx(0.8, abs=1e-3)
    # Every case has the same curve: drawing other cases changes no gain.
    assert found.low == pytest.approx(expected, abs=2e-3) and found.high == pytest.approx(expected, abs=2e-3)
    rng = np.random.default_rng(0)
    noisy = {n: [{c: v + rng.normal(0, 0.02) for c, v in run.items()} for run in of_n * 3] for n, of_n in runs.items()}
    wide = expected_gain(noisy, 16)
    assert wide.high - wide.low > 0.005 and wide.low <= wide.gain <= wide.high


def test_gain_that_cannot_be_known_is_not_said():
    def runs(*values: float) -> dict:
        return {n: [{"a": value, "b": value}] for n, value in zip((2, 4, 8), values)}

    for wrong, further, word in (
        (runs(0.5, 0.6), 2, "2 different numbers"),
        (runs(0.5, 0.6, 0.7), 10, "at most 8"),
        (runs(0.7, 0.6, 0.5), 4, "does not rise"),
        ({2: [{"a": 1.0}], 4: [{"b": 1.0}], 8: [{"c": 1.0}]}, 4, "0 test cases"),
    ):
        with pytest.raises(DataError, match=word):
            expected_gain(wrong, further)


def test_gain_reads_evaluated_runs(tmp_path):
    folders = []
    for n, value in ((2, 0.6), (4, 0.7), (8, 0.75)):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"starts": [], "config": {"num_labeled": n}}))
        lines = [f"{case},{name},{value + shift}" for case in "abc" for name, shift in (("x", 0.1), ("y", -0.1))]
        (folder / "metrics.csv").write_text("case,class,dice\n" + "\n".join(lines) + "\nd,x,nan\n")
        folders.append(str(folder))
    said = gain(folders, further=8)
    assert "2 labels 0.600, 4 labels 0.700, 8 labels 0.750" in said and "one run" in said
    (tmp_path / "8" / "metrics.csv").unlink()
    with pytest.raises(DataError, match=r"8.metrics\.csv"):
        gain(folders)


# --- the simulation's figures ---


def test_area_interval_and_table_by_hand(tmp_path):
    assert area({2: 0.5, 4: 0.7, 8: 0.8}) == pytest.approx((0.6 + 0.75) / 2)
    mean, half = interval([0.0, 0.02])
    assert mean == pytest.approx(0.01) and half == pytest.approx(12.7062 * 0.01, rel=1e-4)
    rows = ["arm,num_labeled,draw,seed,list,case,class,masks,dice,hd95_mm,asd_mm"]
    for repeat, shift in ((0, 0.0), (1, 0.02)):
        for arm, values in (("first", {2: 0.5}), ("random", {4: 0.6}), ("combined", {4: 0.62 + shift})):
            rows += [f"{arm},{n},{repeat},0,test,{c},x,network,{v},," for n, v in values.items() for c in (0, 1)]
    (tmp_path / "cases.csv").write_text("\n".join([*rows, "random,4,0,0,test,0,y,network,nan,,"]) + "\n")
    printed = table(read_curves(tmp_path / "cases.csv"), (2, 4))
    # Differences of the areas: half of 0.02 and of 0.04; t(1) * 0.005 around their mean.
    assert "| random | 2 | 0.500 | 0.600 | 0.5500 |  |" in printed
    assert "| combined | 2 | 0.500 | 0.630 | 0.5650 | +0.0150 +- 0.0635 (n = 2) |" in printed


# --- the chain ---


def test_commands_rank_propose_accept_and_train_on_hippocampus_crops(tmp_path):
    folder = real_data("hippocampus")
    cases = json.loads((folder / "dataset.json").read_text())["training"]
    absolute = [{key: str(folder / path) for key, path in case.items()} for case in cases[:6]]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": absolute}))
    files = [f"configs/{n}.json" for n in ("train", "data/hippocampus", "budgets/cpu", "methods/supervised")]
    common = {"base_filters": 2, "max_iterations": 2, "splits": {"training": [0, 5], "test": [5, 6]}}
    outputs = {"output_dir": tmp_path / "first", "ckpt_dir": tmp_path / "first" / "models"}
    done = run_bundle("training", *files, **common, **outputs, dataset_dir=tmp_path / "data", num_labeled=2)
    assert done.returncode == 0, done.stderr

    def tool(name: str, **options: object) -> str:
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        finished = run_process([sys.executable, "-m", f"tools.active.{name}", *words])
        assert finished.returncode == 0 and "vImageCodec" not in finished.stderr, finished.stderr
        return finished.stdout

    ranking, proposals = tmp_path / "ranking", tmp_path / "proposals"
    options = {"runs": tmp_path / "first", "dataset_dir": tmp_path / "data", "output_dir": ranking}
    tool("rank", **options, strategy="combined", mirror="true")
    assert [row["rank"] for row in read(ranking / "ranking.csv")] == ["1", "2", "3"]
    tool("propose", ranking_dir=ranking, output_dir=proposals, count=1)
    (name,) = json.loads((proposals / "proposals.json").read_text())["cases"]
    assert name == read(ranking / "ranking.csv")[0]["case"]
    header = nrrd.read_header(str(proposals / "labels" / f"{name}.seg.nrrd"))
    assert [header[f"Segment{n}_Name"] for n in (0, 1)] == ["anterior", "posterior"]
    said = tool("accept", proposals_dir=proposals, output_dir=tmp_path / "new", unchanged="accept")
    weights = tmp_path / "first" / "models" / "model.pt"
    words = shlex.split(said.partition("\nNext: ")[2])
    assert words[words.index("--initial_weights") + 1] == str(weights)
    done = run_process([sys.executable, *words[1:]], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "first_3" / "run.json").read_text())
    assert run["starts"][0]["data"]["labeled"]["cases"] == 3 and run["config"]["base_filters"] == 2
    assert (tmp_path / "first_3" / "models" / "model.pt").is_file()


@pytest.mark.long
def test_the_tutorial_runs(project):  # noqa: F811
    execute(ROOT / "docs" / "tutorials" / "ten_to_twenty.md", project)
    folder = project / "outputs" / "loop"
    assert len(read(folder / "ranking" / "ranking.csv")) == 20
    assert len(Datalist(folder / "data_twenty").labeled(20)) == 20
    assert (folder / "twenty" / "metrics_summary.csv").is_file()
