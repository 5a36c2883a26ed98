"""Tests of scripts/lock.py, with real processes that hold a folder, end, or are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, run_bundle, small

from scripts.data import DataError
from scripts.lock import held, hold, is_free, release

PURPOSE = "training"
HOLDER = (
    "import sys; from scripts.lock import hold; hold(sys.argv[1], 'training'); print('held', flush=True); {}input()"
)


@pytest.fixture
def other(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process that holds the folder, runs more code, and ends when it gets a line."""
    started = []

    def start(then: str = "") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(then), str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _let_go(tmp_path) -> Iterator[None]:
    yield
    release(tmp_path, PURPOSE)


def lock_file(folder: Path) -> Path:
    return folder / f".lock-{PURPOSE}"


def test_a_folder_that_another_process_holds_is_refused_with_its_process_and_host(tmp_path, other):
    process = other()
    with pytest.raises(DataError, match=rf"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} "):
        hold(tmp_path, PURPOSE)
    hold(tmp_path, "masks")  # something else goes on beside it
    release(tmp_path, "masks")
    process.communicate("\n")
    hold(tmp_path, PURPOSE)
    assert json.loads(lock_file(tmp_path).read_text())["process"] == os.getpid()


def test_the_lock_of_a_killed_process_is_taken_over_and_named(tmp_path, other, caplog):
    process = other()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(lock_file(tmp_path).read_text())["process"] == process.pid  # it could not clean up
    with caplog.at_level("INFO"):
        hold(tmp_path, PURPOSE)
    assert f"left behind by process {process.pid} on" in caplog.text


def test_a_data_worker_that_outlives_its_killed_process_does_not_hold_its_lock(tmp_path, other):
    # The worker of the process that holds the folder sleeps on.
    process = other("import os, time; worker = os.fork() or time.sleep(60); print(worker, flush=True); ")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        hold(tmp_path, PURPOSE)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_folder_is_free_when_nobody_holds_it_whatever_a_killed_process_has_left(tmp_path, other):
    assert is_free(tmp_path, PURPOSE)
    process = other()
    assert not is_free(tmp_path, PURPOSE) and lock_file(tmp_path).exists()
    process.kill()
    process.wait()
    assert lock_file(tmp_path).exists() and is_free(tmp_path, PURPOSE) and not lock_file(tmp_path).exists()


def test_who_waits_gets_the_lock_when_it_is_let_go(tmp_path, other):
    process = other()
    threading.Timer(0.2, process.kill).start()
    hold(tmp_path, PURPOSE, wait=True)
    assert json.loads(lock_file(tmp_path).read_text())["process"] == os.getpid()


def test_an_ended_process_leaves_no_file_and_a_block_neither(tmp_path, other):
    process = other()
    process.communicate("\n")
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), held(tmp_path, tmp_path / "models", purpose=PURPOSE):
        assert lock_file(tmp_path / "models").is_file()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["models"]


def test_the_runs_of_one_process_do_not_lock_each_other_out(tmp_path):
    hold(tmp_path, PURPOSE)
    hold(tmp_path, PURPOSE)
    release(tmp_path, PURPOSE)
    assert not lock_file(tmp_path).exists()
    release(tmp_path, PURPOSE)  # nothing is held


def test_a_lock_of_the_first_folder_is_given_up_when_the_second_is_in_use(tmp_path, other):
    other()
    with pytest.raises(DataError), held(tmp_path / "own", tmp_path, purpose=PURPOSE):
        pass
    assert not lock_file(tmp_path / "own").exists() and lock_file(tmp_path).exists()


def test_a_link_in_the_place_of_the_lock_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    lock_file(tmp_path).symlink_to("mine")
    with pytest.raises(OSError):
        hold(tmp_path, PURPOSE)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_second_training_in_the_folder_of_the_weights_ends_before_it_writes_there(tmp_path, other, tiny):
    process = other()
    options = small(tiny, tmp_path / "second", ckpt_dir=str(tmp_path), run_preflight=False, mlflow=False)
    finished = run_bundle("training", "configs/train.json", **options)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert f"error: {tmp_path} is in use by process {process.pid}" in finished.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock_file(tmp_path).name, "second"]
    assert not (tmp_path / "second" / "run.json").exists()
