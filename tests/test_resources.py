"""Tests of scripts/training/resources.py: memory that runs out and data workers that die or hang, and what is said."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, run_process
from monai.data import Dataset
from monai.transforms import Compose
from torch import nn

from scripts.data import LabelCoding, crop_stream
from scripts.errors import Advice
from scripts.methods import Objective
from scripts.training import SemiSupervisedTrainer, resources
from scripts.training.resources import advise_on_resources, out_of_memory

HUGE = 1 << 60


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return {"logits": x * self.weight}


class Failing(Objective):
    TERMS = ("mean",)

    def __init__(self, fail) -> None:
        super().__init__(LabelCoding(1))
        self.fail = fail

    def terms(self, heads, targets):
        self.fail()
        return {"mean": heads["logits"].mean()}


class Sabotaged:
    """A transform of the third draw and later: kills its process, or never ends."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.draws = 0

    def __call__(self, item):
        self.draws += 1
        if self.draws > 2 and self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.draws > 2 and self.how == "hang":
            time.sleep(4)
        return item


def crops(transform, **options):
    items = [{"image": torch.zeros(1, 4, 4, 4), "label": torch.zeros(1, 4, 4, 4)}]
    return crop_stream(Dataset(items, Compose([transform])), seed=0, stream=0, **options)


def train(fail=lambda: None, *, loader=None, unlabeled=None, **options) -> None:
    network = Scale()
    SemiSupervisedTrainer(
        device="cpu",
        max_epochs=1,
        epoch_length=6,
        train_data_loader=crops(lambda item: item, batch_size=2) if loader is None else loader,
        unlabeled_data_loader=unlabeled,
        network=network,
        objective=Failing(fail),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        **options,
    ).run()


def advice(error) -> str:
    (note,) = [note for note in error.__notes__ if isinstance(note, Advice)]
    return str(note)


def in_order(text: str, *ids: str) -> bool:
    return re.search(".*".join(map(re.escape, ids)), text) is not None


def test_gpu_memory_names_the_settings_in_order_and_the_error_keeps_its_type():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(fail, unlabeled=crops(lambda item: item, batch_size=4))
    text = advice(caught.value)
    assert text.startswith("The memory of the GPU ran out at iteration 1.")
    order = (
        "amp true",
        "sw_batch_size 1",
        "patch_size",
        "unlabeled_batch_size 2 (now 4)",
        "labeled_batch_size 1 (now 2)",
    )
    assert in_order(text, *order, "base_filters")
    assert "cache_rate" not in text and "num_workers" not in text


@pytest.mark.parametrize(
    "fail",
    [lambda: torch.empty(HUGE), lambda: np.empty(HUGE, np.uint8), lambda: bytearray(HUGE)],
    ids=["torch", "numpy", "python"],
)
def test_memory_of_the_machine_names_the_cache_first(fail):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        train(fail)
    assert out_of_memory(caught.value)
    text = advice(caught.value)
    assert text.startswith("The memory of the machine ran out at iteration 1.")
    assert in_order(text, "cache_rate 0.3", "sw_batch_size 1", "patch_size", "labeled_batch_size 1")
    assert "amp" not in text and "num_workers" not in text and "unlabeled_batch_size" not in text


def test_a_full_disk_says_that_the_run_can_be_continued():
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as caught:
        train(fail)
    assert advice(caught.value).startswith("The disk of output_dir or ckpt_dir was full at iteration 1. Make room; ")


def test_other_errors_get_no_advice():
    def fail():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError) as caught:
        train(fail)
    assert not hasattr(caught.value, "__notes__")


KILLED = "(is killed by signal: Killed|exited unexpectedly|Connection (reset|refused)|Broken pipe|EOFError)"


@pytest.mark.parametrize("how, timeout, said", [("die", 60, KILLED), ("hang", 1, "timed out after 1 seconds")])
def test_a_data_worker_that_dies_or_hangs_ends_the_run(how, timeout, said):
    # In a process of its own: torch raises the death of a worker from a signal handler, wherever that process is.
    code = f"""
from scripts.errors import print_briefly
from test_resources import Sabotaged, crops, train
print_briefly()
train(loader=crops(Sabotaged({how!r}), batch_size=1, num_workers=1, worker_timeout={timeout}))
"""
    finished = run_process([sys.executable, "-c", code], PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    assert finished.returncode == 1 and re.search(f"error: .*{said}", finished.stderr), finished.stderr
    # Not always the last line: torch may report the same death once more while the process ends.
    said_to_do = re.search("^A data worker ended or did not answer at iteration.*$", finished.stderr, re.MULTILINE)
    assert said_to_do, finished.stderr
    assert in_order(said_to_do.group(), "num_workers (now 1", f"worker_timeout (now {timeout} s)")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_the_socket_of_a_killed_worker_is_advised_on_like_the_worker_itself(error):
    trainer = SimpleNamespace(
        data_loader=SimpleNamespace(num_workers=1, timeout=60), state=SimpleNamespace(iteration=3)
    )
    advise_on_resources(trainer, error)
    assert advice(error).startswith("A data worker ended or did not answer at iteration 3")


def test_a_lost_connection_without_workers_is_not_a_worker():
    error = ConnectionResetError(104, "Connection reset by peer")
    trainer = SimpleNamespace(data_loader=SimpleNamespace(num_workers=0, timeout=0), state=SimpleNamespace(iteration=3))
    advise_on_resources(trainer, error)
    assert not hasattr(error, "__notes__")


LOST = "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:32912: Connection reset by peer. This is typically"


@pytest.mark.parametrize(
    "processes, error, advised",
    [
        (2, RuntimeError(LOST), True),
        (2, RuntimeError("Timed out waiting 3600000ms for recv operation to complete"), True),
        (2, dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (2, RuntimeError("shapes differ"), False),
        (1, RuntimeError(LOST), False),
    ],
    ids=["gone", "silent", "nccl", "of its own", "alone"],
)
def test_a_process_that_lost_another_one_says_so(monkeypatch, processes, error, advised):
    monkeypatch.setattr(resources, "world_size", lambda: processes)
    trainer = SimpleNamespace(data_loader=SimpleNamespace(num_workers=0, timeout=0), state=SimpleNamespace(iteration=3))
    advise_on_resources(trainer, error)
    if advised:
        said = (
            f"Another process of this run ended, or did not answer, at iteration 3; this is process 0 of {processes}."
        )
        assert advice(error).startswith(said) and '"Root Cause"' in advice(error)
    else:
        assert not hasattr(error, "__notes__")


def test_without_workers_the_timeout_is_left_out():
    assert crops(lambda item: item, batch_size=1, worker_timeout=600).timeout == 0
    assert crops(lambda item: item, batch_size=1, num_workers=1).timeout == 600


def test_advice_is_printed_instead_of_the_traceback():
    code = """
from scripts.errors import Advice, print_briefly
print_briefly()
try:
    error = RuntimeError("can't allocate memory\\nand much more")
    error.add_note("a note of somebody else")
    error.add_note(Advice("Lower patch_size."))
    raise error
except RuntimeError as cause:
    raise ValueError("failed to instantiate") from cause
"""
    finished = run_process([sys.executable, "-c", code])
    assert finished.returncode == 1
    assert finished.stderr.strip() == "error: can't allocate memory\nLower patch_size."


def test_memory_that_runs_out_elsewhere_points_to_the_documentation():
    code = "from scripts.errors import print_briefly\nprint_briefly()\nbytearray(1 << 60)"
    finished = run_process([sys.executable, "-c", code])
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "The memory ran out: docs/training.md" in finished.stderr
