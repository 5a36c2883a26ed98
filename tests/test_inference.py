"""Tests of scripts/inference: window steps, loading weights, and cases that fail alone."""

from __future__ import annotations

import csv
import json
import logging
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, blob, run_process, save
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import LoadImaged, NormalizeIntensity
from torch import nn

from scripts.data import DataError, NiftiReader
from scripts.inference import (
    CaseLoader,
    CheckFinited,
    HalfPrecision,
    Outcomes,
    TolerantDataset,
    TolerantEvaluator,
    WeightsCheckpointLoader,
    window_overlap,
    windows_at_once,
)
from scripts.inference.failures import check_image
from scripts.inference.windows import FLOAT, MAPS

# --- window_overlap ---


@pytest.mark.parametrize(
    "patch, stride",
    [(112, 18), (80, 4), (96, 16), (64, 16), (48, 12), (32, 8), (16, 16), (16, 1), (10, 3), (7, 5), (1, 1), (100, 99)],
)
def test_windows_move_by_exactly_the_stride(patch, stride):
    extent = patch + 3 * stride + (1 if stride > 1 else 0)  # the last window is shifted back to fit
    starts = []

    def remember(windows: torch.Tensor) -> torch.Tensor:
        starts.extend(windows[:, 0, 0, 0, 0].int().tolist())
        return windows

    volume = torch.arange(extent, dtype=torch.float32)[None, None, :, None, None]
    overlap = window_overlap((patch, 1, 1), (stride, 1, 1))
    SlidingWindowInferer(roi_size=(patch, 1, 1), sw_batch_size=2, overlap=overlap)(volume, remember)
    expected = [0, stride, 2 * stride, 3 * stride]
    assert starts == (expected if stride == 1 else [*expected, extent - patch])


@pytest.mark.parametrize(
    "patch, stride",
    [((16, 16, 16), (8, 8)), ((16, 16, 16), (8, 17, 8)), ((16, 16, 16), (8, 0, 8)), ((16, 16, 16), (8, -4, 8))],
    ids=["two-axes", "above-the-patch", "zero", "negative"],
)
def test_stride_out_of_range_is_quoted_with_the_patch(patch, stride):
    with pytest.raises(ValueError) as caught:
        window_overlap(patch, stride)
    assert f"stride is {list(stride)} and patch_size {list(patch)}: give one step per axis" in str(caught.value)


# --- windows_at_once ---

# 64 x 48 x 32 voxels, 8 filters, 10 maps of 4 bytes each: 31.5 MB per window, and half of the free memory is for them.


@pytest.mark.parametrize(
    "free, windows", [(10e6, 1), (63e6, 1), (130e6, 2), (200e6, 3), (260e6, 4), (64e9, 4), (None, 4)]
)
def test_windows_at_once_are_as_many_as_half_of_the_free_memory_takes(monkeypatch, free, windows):
    monkeypatch.setattr("scripts.inference.windows.free_memory", lambda: free)
    given = {"patch_size": (64, 48, 32), "base_filters": 8}
    assert windows_at_once(**given, device=torch.device("cpu")) == windows
    if free is not None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
        monkeypatch.setattr("scripts.inference.windows.free_memory", lambda: 0)
        assert windows_at_once(**given, device=torch.device("cuda:0")) == windows


def test_a_window_takes_less_memory_than_is_planned_for_it():
    """Peak of the network alone on four windows, in a process of its own; no less than a third, or it says nothing."""
    code = (
        "import torch; from pathlib import Path; from scripts.networks import DualTaskVNet; torch.set_num_threads(1);"
        "status = lambda key: int(Path('/proc/self/status').read_text().split(key)[1].split()[0]) * 1024;"
        "network = DualTaskVNet().eval().to(memory_format=torch.channels_last_3d); torch.set_grad_enabled(False);"
        "network(torch.randn(1, 1, 16, 16, 16)); x = torch.randn(4, 1, 48, 48, 32);"
        "Path('/proc/self/clear_refs').write_text('5'); before = status('VmRSS:'); network(x);"
        "print(status('VmHWM:') - before)"
    )
    finished = run_process([sys.executable, "-c", code])
    assert finished.returncode == 0, finished.stderr
    planned = 4 * FLOAT * MAPS * 16 * 48 * 48 * 32
    assert planned / 3 < int(finished.stdout) < planned


# --- WeightsCheckpointLoader ---


def load(path: Path, network: nn.Module, **options) -> None:
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(load_path=str(path), load_dict={"model": network}, **options).attach(engine)
    engine.run([0], max_epochs=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_loaded_when_the_engine_starts_in_whatever_precision_they_are(tmp_path, dtype):
    torch.manual_seed(0)
    trained, network = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save({name: value.to(dtype) for name, value in trained.state_dict().items()}, tmp_path / "model.pt")
    load(tmp_path / "model.pt", network)
    assert network.weight.dtype == torch.float32
    assert torch.equal(network.weight, trained.weight.to(dtype).float())


def test_missing_weights_are_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}/model\.pt does not exist"):
        load(tmp_path / "model.pt", nn.Linear(3, 2))


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is not a file of weights"), (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS")],
    ids=["empty", "lfs-pointer"],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path, content, message):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/model\.pt {message}"):
        load(tmp_path / "model.pt", nn.Linear(3, 2))


WRAPPINGS = {
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "both": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "compiled part": lambda state: {name.replace("0.", "0._orig_mod."): value for name, value in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"momentum": torch.zeros(2)}}}},
    "lightning": lambda state: {
        "state_dict": {**{f"net.{name}": value for name, value in state.items()}, "loss.weight": torch.ones(2)}
    },
    "own checkpoint": lambda state: {
        "iteration": 7,
        "parts": {
            "network": state,
            "objective": {f"teacher.{name}": torch.zeros_like(value) for name, value in state.items()},
        },
    },
}


def bare_layers(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(count)))


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_however_a_program_has_wrapped_them(tmp_path, wrapping):
    trained, network = small_network(), small_network()
    torch.save(WRAPPINGS[wrapping](dict(trained.state_dict())), tmp_path / "model.pt")
    load(tmp_path / "model.pt", network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), trained.parameters(), strict=True))


def test_two_sets_of_weights_that_fit_are_not_chosen_from(tmp_path):
    state = small_network().state_dict()
    torch.save({"student": state, "teacher": state}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"several sets of weights that fit, 'student\.', 'teacher\.'"):
        load(tmp_path / "model.pt", small_network())


def test_weights_of_half_precision_go_into_the_network_that_is_wrapped(tmp_path):
    trained, network = nn.Linear(3, 2), HalfPrecision(nn.Linear(3, 2))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    load(tmp_path / "model.pt", network)
    assert torch.equal(network.network.weight, trained.weight.half())


@pytest.mark.parametrize(
    "other, message",
    [
        (nn.Linear(4, 2), r"weight has the shape \(2, 4\), and \(2, 3\) in the network"),
        (nn.Linear(3, 2, bias=False), r"does not fit the Linear: it lacks bias\. "),
        (bare_layers(2), r"it lacks bias, weight and has 0\.weight, 1\.weight, which the network has not"),
        (bare_layers(6), r"and has 0\.weight, 1\.weight, 2\.weight and 3 more, which the network has not"),
    ],
    ids=["shapes", "missing", "names", "many"],
)
def test_weights_of_another_network_are_refused_with_the_first_names_that_differ(tmp_path, other, message):
    torch.save(other.state_dict(), tmp_path / "model.pt")
    with pytest.raises(DataError, match=message + r".*add .*/model\.json"):
        load(tmp_path / "model.pt", nn.Linear(3, 2))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, number):
    network = nn.Linear(3, 2)
    network.bias.data[1] = number
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt has weights that are NaN or infinite, in bias"):
        load(tmp_path / "model.pt", nn.Linear(3, 2))


@pytest.mark.parametrize("config", ["configs/inference.json", "configs/evaluate.json"])
def test_a_prediction_that_is_not_finite_fails_its_case_and_makes_no_mask(config):
    """Exported networks, and half precision that overflows, have no file of weights to look at."""
    content = json.loads((ROOT / config).read_text(encoding="utf-8"))
    first = (content.get("postprocessing") or content["validate#postprocessing"])["transforms"][0]
    assert first == {"_target_": "scripts.inference.CheckFinited", "keys": "pred"}
    good = MetaTensor(torch.rand(2, 4, 4, 4), meta={"filename_or_obj": "/data/a.nii.gz"})
    assert CheckFinited("pred")({"pred": good})["pred"] is good
    for number in (torch.nan, torch.inf):
        spoilt = good.clone()
        spoilt[1, 2, 2, 2] = number
        with pytest.raises(DataError, match="the network gives NaN for /data/a.nii.gz"):
            CheckFinited("pred")({"pred": spoilt})


@pytest.mark.parametrize(
    "trained, differing",
    [
        ({"spacing": [1.25, 1.25, 2]}, "spacing [1.25, 1.25, 2], and [1, 1, 1] here"),
        (
            {"spacing": None, "regions": [[1, 2], [2]]},
            "spacing None, and [1, 1, 1] here; with regions [[1, 2], [2]], and None",
        ),
        ({"spacing": [1.0, 1.0, 1.0], "normalize_nonzero": True, "dropout": 0.5}, None),
        ({}, None),
    ],
)
def test_weights_are_not_run_on_volumes_prepared_otherwise_than_in_their_training(tmp_path, trained, differing):
    network = nn.Linear(3, 2)
    torch.save(network.state_dict(), tmp_path / "best.pt")
    (tmp_path / "best.json").write_text(json.dumps(trained))
    settings = {"spacing": (1, 1, 1), "regions": None, "normalize_nonzero": True}
    if differing is None:
        load(tmp_path / "best.pt", network, settings=settings)
        return
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "best.pt", network, settings=settings)
    assert str(caught.value).startswith(f"{tmp_path}/best.pt was trained with {differing}")
    assert f"add {tmp_path}/best.json, which training wrote" in str(caught.value) and "--ckpt_path" in str(caught.value)


def test_weights_are_those_of_the_training_whose_settings_are_used(tmp_path):
    for name, digest in (("mine", {"run_digest": "a"}), ("shipped", {"spacing": None}), ("fold", {"run_digest": "b"})):
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.json").write_text(json.dumps(digest))
    load(tmp_path / "mine.pt", nn.Linear(3, 2), run_digest="a")
    load(tmp_path / "shipped.pt", nn.Linear(3, 2))
    with pytest.raises(DataError, match="shipped"):
        load(tmp_path / "shipped.pt", nn.Linear(3, 2), run_digest="a")
    paths, networks = [str(tmp_path / name) for name in ("fold.pt", "mine.pt")], [nn.Linear(3, 2), nn.Linear(3, 2)]
    WeightsCheckpointLoader(load_path=paths, load_dict={"model": networks}, run_digest="a").load()


@pytest.mark.parametrize("config", ["configs/evaluate.json", "configs/inference.json"])
def test_both_commands_compare_the_settings_of_the_model(config):
    content = json.loads((ROOT / config).read_text(encoding="utf-8"))
    handlers = content.get("handlers") or content["validate#handlers"]
    (loader,) = [h for h in handlers if isinstance(h, dict) and h["_target_"].endswith("CheckpointLoader")]
    assert loader["settings"] == "@model_settings"


def test_several_files_go_into_as_many_networks_in_their_order(tmp_path):
    trained = [nn.Linear(3, 2) for _ in range(3)]
    paths = [str(tmp_path / f"{i}.pt") for i in range(3)]
    for network, path in zip(trained, paths):
        torch.save(network.state_dict(), path)
    networks = [nn.Linear(3, 2) for _ in range(3)]
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(load_path=paths, load_dict={"model": networks}).attach(engine)
    engine.run([0])
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(networks, trained))


def test_another_number_of_files_than_of_networks_is_refused():
    with pytest.raises(ValueError, match=r"load_path has 2 file\(s\) and load_dict 1 network\(s\)"):
        WeightsCheckpointLoader(load_path=["a.pt", "b.pt"], load_dict={"model": nn.Linear(3, 2)})


# --- TolerantDataset, TolerantEvaluator ---

CASES = ("a", "b", "c")


class Cases:
    """A data set of three cases, of which those in ``broken`` cannot be read."""

    def __init__(self, broken=(), error: Exception | None = None) -> None:
        self.data = [{"image": f"/data/{name}.nii.gz"} for name in CASES]
        self.broken = broken
        self.error = error or OSError("disk\non fire")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        if CASES[index] in self.broken:
            raise RuntimeError("applying transform") from self.error
        volume = torch.full((1, 4, 4, 4), float(index))
        volume[0, 0, 0, :2] += torch.tensor([1.0, -1.0])  # the mean stays; an image of one value would be refused
        return {"image": MetaTensor(volume, meta={"filename_or_obj": self.data[index]["image"]})}


class Network(nn.Module):
    """The identity, except for a volume that holds ``number``."""

    def __init__(self, number: float | None = None, error: type[BaseException] = ValueError) -> None:
        super().__init__()
        self.number = number
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean().item() == self.number:
            raise self.error("no")
        return x


class Results:
    """A handler that keeps the predictions of every iteration, and whether it saw the end of the run."""

    def __init__(self) -> None:
        self.predictions: list[float] = []
        self.completed = False

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def keep(self, engine) -> None:
        self.predictions += [item["pred"].mean().item() for item in engine.state.output]

    def end(self, engine) -> None:
        self.completed = True


def make(folder: Path, *, broken=(), network: nn.Module | None = None, postprocessing=None, error=None, ahead=False):
    results = Results()
    loader = CaseLoader(TolerantDataset(Cases(broken, error)), ahead=ahead)
    evaluator = TolerantEvaluator(
        outcomes=Outcomes(folder),
        device="cpu",
        val_data_loader=loader,
        network=network or Network(),
        postprocessing=postprocessing,
        val_handlers=[results],
    )
    return evaluator, results


def failures(folder: Path) -> list[list[str]]:
    with (folder / "failures.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def unwritable(data: dict) -> dict:
    if data["pred"].mean() == 1:
        raise PermissionError("b is write-protected")
    return data


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"broken": ["b"]}, "OSError: disk on fire"),
        ({"network": Network(1.0)}, "ValueError: no"),
        ({"postprocessing": unwritable}, "PermissionError: b is write-protected"),
    ],
    ids=["reading", "network", "writing"],
)
def test_a_case_that_fails_is_reported_and_the_others_are_complete(tmp_path, options, reason):
    folder = tmp_path / "made"
    evaluator, results = make(folder, **options)
    with pytest.raises(DataError) as caught:
        evaluator.run()
    assert results.predictions == [0.0, 2.0]
    assert results.completed  # the metrics' summary is written before the run ends with the error
    assert failures(folder) == [["case", "reason"], ["/data/b.nii.gz", reason]]
    assert f"1 of 3 cases failed; the others are complete. The reasons are in {folder}/failures.csv" in str(
        caught.value
    )


@pytest.mark.parametrize("ahead", [False, True])
def test_all_cases_come_in_their_order_read_ahead_or_not(tmp_path, ahead):
    evaluator, results = make(tmp_path, broken=["b"], ahead=ahead)
    with pytest.raises(DataError):
        evaluator.run()
    assert results.predictions == [0.0, 2.0] and [row[0] for row in failures(tmp_path)[1:]] == ["/data/b.nii.gz"]


def test_the_next_case_is_read_while_this_one_is_in_use():
    read, waiting = [], threading.Event()

    class Watched(Cases):
        def __getitem__(self, index):
            read.append(index)
            if index == 1:
                waiting.set()
            return super().__getitem__(index)

    cases = iter(CaseLoader(TolerantDataset(Watched()), ahead=True))
    next(cases)
    assert waiting.wait(timeout=30) and 2 not in read
    assert len(list(cases)) == 2 and read == [0, 1, 2]


def test_an_interrupt_of_the_reading_thread_is_not_lost():
    class Stopped(Cases):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(CaseLoader(TolerantDataset(Stopped()), ahead=True))


def test_without_failures_there_is_no_error_and_no_file(tmp_path):
    evaluator, results = make(tmp_path)
    evaluator.run()
    assert results.predictions == [0.0, 1.0, 2.0]
    assert not (tmp_path / "failures.csv").exists()


def test_on_a_cpu_memory_of_one_case_is_kept_for_the_next(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("scripts.inference.failures.keep_freed_memory", lambda: seen.append("kept"))
    evaluator, results = make(tmp_path)
    evaluator.run()
    assert seen == ["kept"] and results.predictions == [0.0, 1.0, 2.0]


def test_all_failures_are_listed_in_the_order_of_the_cases(tmp_path):
    evaluator, _ = make(tmp_path, broken=CASES)
    with pytest.raises(DataError, match=r"3 of 3 cases failed\. The reasons"):
        evaluator.run()
    assert [row[0] for row in failures(tmp_path)[1:]] == [f"/data/{name}.nii.gz" for name in CASES]


def test_failures_of_an_earlier_run_are_forgotten(tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 3"):
            make(tmp_path, broken=["a"])[0].run()
        assert len(failures(tmp_path)) == 2
    make(tmp_path)[0].run()
    assert not (tmp_path / "failures.csv").exists()


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError, KeyboardInterrupt])
def test_running_out_of_memory_or_being_stopped_ends_the_run(tmp_path, error):
    evaluator, results = make(tmp_path, network=Network(1.0, error))
    with pytest.raises(error):
        evaluator.run()
    assert results.predictions == [0.0]
    assert not (tmp_path / "failures.csv").exists()


def volume(*channels: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.stack(channels).astype(np.float32)))


@pytest.mark.parametrize("value", [1e6, -1e6, 1e30])
def test_single_voxels_that_flatten_an_image_and_constant_channels_are_named_with_the_channel(value):
    noise = np.random.default_rng(0).normal(100, 10, (20, 20, 20))
    spoilt = noise.copy()
    spoilt[3, 4, 5] = value
    scale = NormalizeIntensity(channel_wise=True)
    check_image(scale(volume(noise, noise)), "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz has a few voxels in channel 1 "):
        check_image(scale(volume(noise, spoilt)), "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz is the same in every voxel in channel 0"):
        check_image(scale(volume(np.full_like(noise, 7), noise)), "a.nii.gz")


@pytest.mark.parametrize(("shape", "filled"), [((24, 16, 8), None), ((40, 8, 8), "25"), ((15, 8, 16), "47")])
def test_an_image_that_fills_less_than_half_of_the_window_is_named(caplog, shape, filled):
    data = Dataset([{"image": "small.nii.gz"}], lambda case: {"image": torch.rand(1, *shape)})
    assert TolerantDataset(data, window=(16, 16, 16))[0]["image"].shape == (1, *shape)
    found = [record.getMessage() for record in caplog.records if "window" in record.getMessage()]
    assert len(found) == (filled is not None)
    assert all("small.nii.gz" in text and f"{filled} %" in text and "[16, 16, 16]" in text for text in found)


def test_a_small_object_in_an_empty_image_does_not_make_it_flat():
    image = np.zeros((40, 40, 40))
    image[10:14, 10:14, 10:14] = 100
    check_image(NormalizeIntensity()(volume(image)), "a.nii.gz")


def test_being_stopped_while_reading_ends_the_run():
    class Stopped(Cases):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TolerantDataset(Stopped())[0]


def test_without_any_case_a_run_does_nothing_and_says_nothing(tmp_path, recwarn):
    loader = CaseLoader(TolerantDataset([]))
    results = Results()
    TolerantEvaluator(
        outcomes=Outcomes(tmp_path), device="cpu", val_data_loader=loader, network=Network(), val_handlers=[results]
    ).run()
    assert results.predictions == [] and not results.completed and list(tmp_path.iterdir()) == []
    assert [str(warning.message) for warning in recwarn if "empty" in str(warning.message)] == []


def test_a_case_is_forgotten_before_the_next_is_read(tmp_path):
    seen = []

    class Watched(Cases):
        def __getitem__(self, index):
            seen.append((evaluator.state.batch, evaluator.state.output))
            return super().__getitem__(index)

    loader = CaseLoader(TolerantDataset(Watched()))
    evaluator = TolerantEvaluator(outcomes=Outcomes(tmp_path), device="cpu", val_data_loader=loader, network=Network())
    evaluator.run()
    assert seen == [(None, None)] * 3
    assert evaluator.state.output[0]["pred"].mean() == 2  # what a client may look at after the run


def test_an_error_that_quotes_a_traceback_is_reported_by_its_last_line(tmp_path):
    def write(data):
        raise RuntimeError(
            "no writer.\nTraceback (most recent call last):\n  File x\nOSError: [Errno 28] No space left\n"
        )

    evaluator, _ = make(tmp_path, postprocessing=write)
    with pytest.raises(DataError):
        evaluator.run()
    assert failures(tmp_path)[1] == ["/data/a.nii.gz", "OSError: [Errno 28] No space left"]


def test_what_is_odd_about_a_header_is_said_before_the_case_is_segmented(tmp_path, caplog):
    """The preflight's warnings: a unit, a voxel size that no patient has, two places at once."""
    image = blob((8, 8, 8), seed=0)[0]
    save(image, np.eye(4), tmp_path / "plain.nii.gz")
    save(image, np.diag((0.00125, 0.00125, 0.00125, 1)), tmp_path / "metres.nii.gz")
    save(image, np.diag((1250.0, 1250.0, 1250.0, 1)), tmp_path / "micrometres.nii.gz")
    two = nibabel.Nifti1Image(image, np.eye(4))
    two.set_qform(np.eye(4), 1)
    two.set_sform(np.eye(4) + np.outer((10, 0, 0, 0), (0, 0, 0, 1)), 2)
    two.header.set_xyzt_units("micron")
    nibabel.save(two, tmp_path / "two.nii.gz")
    reader = LoadImaged("image", reader=NiftiReader, ensure_channel_first=True)
    cases = [{"image": str(path)} for path in sorted(tmp_path.glob("*.nii.gz"))]
    with caplog.at_level(logging.WARNING):
        assert all("failure" not in item for item in TolerantDataset(Dataset(cases, reader)))
    said = {name: [m for m in caplog.messages if name in m] for name in ("plain", "/metres", "/micrometres", "/two")}
    assert [len(messages) for messages in said.values()] == [0, 1, 1, 2]
    assert "0.00125" in said["/metres"][0] and "1250" in said["/micrometres"][0]
    assert "in micrometres" in said["/two"][0] and "10.0 mm apart" in said["/two"][1]
