"""Tests of scripts/training/initial.py: what fits is taken, everything else is said; teachers start alike."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from conftest import merged, run_bundle, small
from torch import nn

from scripts.data import DataError
from scripts.networks import DualTaskVNet, VNet
from scripts.training import start_from

TRAIN = "configs/train.json"


def saved(network: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """Writes weights that no network is made with, and returns them."""
    state = {name: torch.full_like(value, 0.25) for name, value in network.state_dict().items()}
    torch.save(state, path)
    return state


@pytest.mark.parametrize("changes, part", [({"num_classes": 2}, "segmentation_head"), ({"in_channels": 3}, "encoder")])
def test_what_has_the_name_and_the_shape_is_taken_and_the_log_says_what_was_not_and_why(
    tmp_path, caplog, changes, part
):
    caplog.set_level(logging.INFO)
    given = saved(DualTaskVNet(base_filters=2), tmp_path / "model.pt")
    network = DualTaskVNet(base_filters=2, **changes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert start_from(network, tmp_path / "model.pt") is network
    fits = {name for name, value in before.items() if given[name].shape == value.shape}
    assert 0 < len(fits) < len(before)
    for name, value in network.state_dict().items():
        assert torch.equal(value, given[name] if name in fits else before[name]), name
    messages = [record.getMessage() for record in caplog.records if record.name == "scripts.training.initial"]
    assert set(messages[0].rpartition(": ")[2].split(", ")) == fits
    assert len(messages) == 1 + len(before) - len(fits)
    for name in before.keys() - fits:
        (line,) = [message for message in messages[1:] if f" {name} " in message]
        assert str(tuple(before[name].shape)) in line and str(tuple(given[name].shape)) in line
    assert any(part in message for message in messages[1:])


def test_tensors_that_only_one_side_has_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    network = VNet(base_filters=2)
    state = dict(network.state_dict())
    gone, value = state.popitem()
    torch.save({**state, "elsewhere": value}, tmp_path / "model.pt")
    start_from(network, tmp_path / "model.pt")
    assert f"{gone} {tuple(value.shape)} stays" in caplog.text and "elsewhere of the file" in caplog.text


def test_weights_of_which_none_fits_are_refused(tmp_path):
    saved(VNet(base_filters=4), tmp_path / "model.pt")
    own = {name: value for name, value in torch.load(tmp_path / "model.pt").items() if value.dim() == 5}
    torch.save(own, tmp_path / "model.pt")
    with pytest.raises(DataError, match=rf"{tmp_path / 'model.pt'}.*VNet"):
        start_from(VNet(base_filters=2), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [None, b"no weights", {"a": torch.tensor([1.0, torch.nan])}, [1, 2]], ids=str)
def test_file_without_usable_weights_is_refused_by_name(tmp_path, content):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DataError, match=str(path)):
        start_from(VNet(base_filters=2), path)


def test_code_in_the_file_is_not_run(tmp_path):
    torch.save(VNet(base_filters=2), tmp_path / "model.pt")
    with pytest.raises(DataError, match="not a file of weights"):
        start_from(VNet(base_filters=2), tmp_path / "model.pt")


@pytest.mark.parametrize("method, teacher", [("ua_mt", "teacher.network"), ("bcp", "copy_paste.teacher.network")])
def test_teachers_start_from_the_same_weights(tiny, tmp_path, method, teacher):
    parser = merged(TRAIN, f"configs/methods/{method}.json")
    parser.update(small(tiny, tmp_path))
    given = saved(parser.get_parsed_content("network_def"), tmp_path / "model.pt")
    parser = merged(TRAIN, f"configs/methods/{method}.json")
    parser.update(small(tiny, tmp_path, initial_weights=str(tmp_path / "model.pt")))
    state = parser.get_parsed_content("objective").get_submodule(teacher).state_dict()
    assert state.keys() == given.keys() and all(torch.equal(state[name], given[name]) for name in given)


def test_a_run_that_continues_ignores_them_and_needs_no_file(tiny, tmp_path):
    torch.manual_seed(5)
    torch.save(DualTaskVNet(base_filters=2).state_dict(), tmp_path / "other.pt")
    ends = {}
    for name in ("whole", "stopped"):
        options = small(tiny, tmp_path / name, checkpoint_interval=2, initial_weights=str(tmp_path / "other.pt"))
        finished = run_bundle("training", TRAIN, **options)
        assert finished.returncode == 0, finished.stderr
        assert f"176 of 176 tensors are from {tmp_path / 'other.pt'}" in finished.stderr + finished.stdout
        if name == "stopped":
            (tmp_path / name / "models" / "model.pt").unlink()
            (tmp_path / name / "checkpoints" / "checkpoint_iteration_4.pt").unlink()
            (tmp_path / "other.pt").rename(tmp_path / "moved.pt")
            finished = run_bundle("training", TRAIN, **options)
            assert finished.returncode == 0 and "resuming at iteration 2 of 4" in finished.stdout, finished.stderr
        ends[name] = torch.load(tmp_path / name / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, ends["stopped"][key]) for key, value in ends["whole"].items())
