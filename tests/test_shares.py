"""Tests of scripts/inference/shares.py and of folders that several processes fill, some of which are killed."""

from __future__ import annotations

import csv
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, blob, las, merged, run_process, save

from scripts.data import DataError, LabelCoding
from scripts.errors import UserError
from scripts.inference import InferenceRecord, Outcomes
from scripts.inference.outcomes import MASKS
from scripts.inference.shares import part_of, share_of_process
from scripts.lock import release
from scripts.overrides import read_words

INFERENCE = "configs/inference.json"
COUNT, BROKEN = 60, (7, 21, 44)
# A network without weights.
OPTIONS = {
    "network_def": {"_target_": "torch.nn.Sigmoid"},
    "spacing": None,
    "patch_size": [16, 16, 16],
    "stride": [16, 16, 16],
    "device": "$torch.device('cpu')",
    "handlers#0#_disabled_": True,
    "save_volumes": True,
}


def test_shares_are_disjoint_and_together_everything():
    cases = list(range(23))
    parts = [part_of(cases, (k, 5)) for k in range(1, 6)]
    assert sorted(case for part in parts for case in part) == cases
    assert sorted(map(len, parts)) == [4, 4, 5, 5, 5]
    assert part_of(cases, share_of_process()) == cases


@pytest.mark.parametrize("share", ["0/4", "5/4", "1", "a/b", "-1/4", 3])
def test_what_is_no_share_is_refused_with_its_value(share):
    with pytest.raises(UserError, match=repr(share)):
        share_of_process(share)


def test_torchruns_processes_divide_the_share_that_they_are_given(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert share_of_process() == (2, 4) and share_of_process("3/3") == (10, 12)


def test_a_share_is_one_word_of_a_command():
    assert read_words(["--share", "3/64"])[1] == {"share": "3/64"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """60 tiny volumes in three folders, of which three are no volumes."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        path = folder / str(number % 3) / f"c{number:02d}.nii.gz"
        save(blob((16, 17, 18), seed=number)[0], las((1.0, 1.2, 2.0)), path)
        if number in BROKEN:
            path.write_bytes(b"broken")
    return folder


def segment(images: Path, masks: Path, share: str | None, killed_after: int | None = None, **changes: object) -> None:
    """Runs inference in this process; notes every case in ``<masks>.log``; kills itself after so many cases."""
    os.chdir(ROOT)
    torch.set_num_threads(1)
    seen = []
    enter = InferenceRecord.enter

    def noted(self: InferenceRecord, outcome: dict) -> None:
        enter(self, outcome)
        with masks.with_suffix(".log").open("a") as file:
            file.write(f"{outcome['case']} {'reason' in outcome}\n")
        seen.append(outcome)
        if len(seen) == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    InferenceRecord.enter = noted  # type: ignore[method-assign]
    parser = merged(INFERENCE)
    parser.update({"input_dir": str(images), "output_dir": str(masks), "share": share, **OPTIONS, **changes})
    try:
        parser.get_parsed_content("evaluator").run()
    except DataError:
        sys.exit(2)


def start(*arguments: object, **changes: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=segment, args=arguments, kwargs=changes)
    process.start()
    return process


def all_of(processes: list) -> list[int]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("again", [["2/4", "3/4"], [None]], ids=["the same shares", "one process"])
def test_four_processes_of_which_two_are_killed_segment_every_volume_once(images, tmp_path, again):
    masks = tmp_path / "masks"
    first = [start(images, masks, f"{k}/4", 5 if k in (2, 3) else None) for k in (1, 2, 3, 4)]
    assert all_of(first)[1:3] == [-signal.SIGKILL] * 2
    assert len(list(masks.rglob("*_seg.nii.gz"))) < COUNT - len(BROKEN)
    all_of([start(images, masks, share) for share in again])
    names = {f"{n % 3}/c{n:02d}" for n in range(COUNT) if n not in BROKEN}
    assert {path.relative_to(masks).as_posix() for path in masks.rglob("*.nii.gz")} == {
        f"{n}_seg.nii.gz" for n in names
    }
    failures = [Path(row["case"]).name for row in rows(masks / "failures.csv")]
    assert sorted(failures) == [f"c{n:02d}.nii.gz" for n in BROKEN]
    volumes = rows(masks / "volumes.csv")
    assert len(volumes) == len(names) and {row["case"] for row in volumes} == names
    record = json.loads((masks / "inference_settings.json").read_text())["cases"]
    assert {name for name, outcome in record.items() if "files" in outcome} == names
    finished = [line.split()[0] for line in masks.with_suffix(".log").read_text().splitlines() if "False" in line]
    assert sorted(finished) == sorted(names)  # nothing twice
    assert not [path.name for path in masks.iterdir() if path.name.startswith(".")]


def test_every_share_tells_by_its_status_how_its_own_cases_ended(images, tmp_path):
    codes = all_of([start(images, tmp_path / "masks", f"{k}/4") for k in (1, 2, 3, 4)])
    cases = sorted(f"{n % 3}/c{n:02d}" for n in range(COUNT))
    bad = {cases.index(f"{n % 3}/c{n:02d}") % 4 for n in BROKEN}
    assert codes == [2 if k in bad else 0 for k in range(4)]


@pytest.fixture
def record(tmp_path) -> Callable[..., InferenceRecord]:
    (tmp_path / "model.pt").touch()

    def make(share: str | None = None, **changes: object) -> InferenceRecord:
        options = {"weights": str(tmp_path / "model.pt"), "model": {"spacing": None}, "label_coding": LabelCoding(1)}
        return InferenceRecord(tmp_path / "masks", share=share, **{**options, **changes})

    return make


def test_a_running_share_is_refused_and_so_are_other_numbers_settings_and_weights(tmp_path, record, images):
    cases = [{"image": str(images / "0" / "c00.nii.gz")}, {"image": str(images / "0" / "c03.nii.gz")}]
    record("1/2").unfinished(cases)  # the record of the run that goes on
    release(tmp_path / "masks", MASKS.format(1, 2))

    def hold(masks: Path, ready: multiprocessing.connection.Connection) -> None:
        from scripts.lock import hold

        hold(masks, MASKS.format(1, 2))
        ready.send(True)
        signal.pause()

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "masks", theirs))
    process.start()
    try:
        ours.recv()
        with pytest.raises(DataError, match=f"in use by process {process.pid}"):
            record("1/2").unfinished(cases)
        with pytest.raises(DataError, match=r"2 share\(s\)"):
            record("1/3").unfinished(cases)
        with pytest.raises(DataError, match="spacing was None and is 1"):
            record("2/2", model={"spacing": 1}).unfinished(cases)
        with pytest.raises(DataError, match="other settings or weights"):
            record("2/2", model={"spacing": 1}, overwrite=True).unfinished(cases)
        release(tmp_path / "masks", MASKS.format(2, 2))
        assert record("2/2").unfinished(cases) == cases[1:]
    finally:
        process.kill()
        process.join()
    for k, n in ((2, 2), (1, 3)):
        release(tmp_path / "masks", MASKS.format(k, n))
    assert record("1/3").unfinished(cases) == cases[:1]  # the killed process holds nothing
    release(tmp_path / "masks", MASKS.format(1, 3))


def test_the_count_is_that_of_all_shares(tmp_path, record, images, monkeypatch):
    monkeypatch.setattr("scripts.inference.continuing.LOOK", 0)
    cases = [{"image": str(images / "0" / f"c{n:02d}.nii.gz")} for n in (0, 3, 6, 9)]
    one, two = record("1/2"), record("2/2")
    for kept in (one, two):
        kept.unfinished(cases)
    two.failed(cases[1]["image"], "broken")
    assert one.count() == two.count() == 1
    one.failed(cases[0]["image"], "broken")
    assert one.count() == two.count() == 2
    for k in (1, 2):
        release(tmp_path / "masks", MASKS.format(k, 2))


def test_the_tables_of_an_evaluation_in_several_processes_are_those_of_all(tmp_path, monkeypatch):
    for number in (1, 0):  # the first process comes last to the end
        monkeypatch.setattr("scripts.inference.shares.rank", lambda number=number: number)
        monkeypatch.setattr("scripts.inference.outcomes.rank", lambda number=number: number)
        monkeypatch.setattr("scripts.inference.shares.world_size", lambda: 2)
        outcomes = Outcomes(tmp_path)
        with outcomes.recording():
            outcomes.failed(f"/data/{number}.nii.gz", "broken")
    assert [row["case"] for row in rows(tmp_path / "failures.csv")] == ["/data/0.nii.gz", "/data/1.nii.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["failures.csv"]


@pytest.mark.long
def test_torchruns_processes_share_a_folder_out_and_the_first_speaks_for_all(images, tmp_path):
    masks = tmp_path / "masks"
    command = [sys.executable, "-m", "scripts.launch", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "inference", "--config_file", INFERENCE, "--input_dir", str(images)]
    for name, value in {**OPTIONS, "output_dir": str(masks)}.items():
        command += [f"--{name}", str(value)]
    finished = run_process(command)
    assert finished.returncode == 2
    assert finished.stderr.count(f" of {COUNT} cases failed") == 1
    last = finished.stderr.splitlines()[-1]
    assert f"{len(BROKEN)} of {COUNT} cases" in last and f"{COUNT - len(BROKEN)} masks in {masks}" in last
    assert len(list(masks.rglob("*_seg.nii.gz"))) == COUNT - len(BROKEN)
    assert len(rows(masks / "failures.csv")) == len(BROKEN)
    assert len(rows(masks / "volumes.csv")) == COUNT - len(BROKEN)
