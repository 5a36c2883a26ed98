"""Tests of resuming: a run that is stopped, however, ends with the weights of one that was never stopped."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TIMEOUT, bundle_command, run_bundle, small
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import nn

from scripts.errors import UserError
from scripts.settings import FIXED, FREE, fixed_settings
from scripts.training import RunState, SaveRun, checkpoints, run_or_resume
from scripts.training.checkpoints import load_if_whole, save_atomically

TRAIN = "configs/train.json"
ITERATIONS = 30
FIRST = 4  # iteration behind which there is a checkpoint
SETTINGS = {"max_iterations": ITERATIONS, "checkpoint_interval": 3, "val_interval": 1, "base_filters": 1}


def weights(output: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return torch.load(output / "models" / name, weights_only=True)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def log(output: Path) -> list[dict[str, str]]:
    """The rows of the training log that are complete."""
    path = output / "training_log.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["pseudo_weight"]]


def stop_at(iteration: int, how: signal.Signals, output: Path, command: list[str], *, wait: float = 0.0) -> int:
    """Starts a training, stops it ``wait`` seconds after its log has ``iteration`` rows, and returns the exit status.

    On a busy machine the signal may come later, even behind the end of the training.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, start_new_session=True)
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and len(log(output)) < iteration:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(wait)
    process.send_signal(how)
    try:
        return process.wait(TIMEOUT)
    finally:
        # Data workers of a killed process end by themselves, but not at once.
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module")
def never_stopped(tiny, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("never_stopped")
    finished = run_bundle("training", TRAIN, **small(tiny, output, **SETTINGS))
    assert finished.returncode == 0, finished.stderr
    return output


def stop_and_continue(tiny, output, *, at: int, how: signal.Signals, wait: float = 0.0, **more) -> str:
    command = bundle_command("training", TRAIN, **small(tiny, output, **{**SETTINGS, **more}))
    for part in (1, 0.5, 0):  # earlier as long as the training is quicker than the signal
        shutil.rmtree(output)
        status = stop_at(max(FIRST, int(part * at)), how, output, command, wait=part * wait)
        if not (output / "models" / "model.pt").exists():
            break
    assert status == (128 + signal.SIGTERM if how == signal.SIGTERM else -signal.SIGKILL)
    assert not (output / "models" / "model.pt").exists()
    finished = run_bundle("training", TRAIN, **small(tiny, output, **{**SETTINGS, **more}))
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(
    "at, how, workers", [(8, signal.SIGKILL, 0), (17, signal.SIGTERM, 0), (22, signal.SIGKILL, 2)], ids=str
)
def test_a_stopped_run_continues_to_the_weights_of_one_that_never_stopped(
    tiny, tmp_path, never_stopped, at, how, workers
):
    said = stop_and_continue(tiny, tmp_path, at=at, how=how, wait=random.uniform(0, 0.1), num_workers=workers)
    assert "resuming at iteration" in said
    assert_same(weights(tmp_path), weights(never_stopped))
    assert_same(weights(tmp_path, "model_best.pt"), weights(never_stopped, "model_best.pt"))
    assert [row["iteration"] for row in log(tmp_path)] == [str(i + 1) for i in range(ITERATIONS)]
    assert [row["loss"] for row in log(tmp_path)] == [row["loss"] for row in log(never_stopped)]
    seconds = [float(row["seconds"]) for row in log(tmp_path)]
    assert seconds == sorted(seconds)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", ["mean_teacher", "sassnet", "dan", "dual_networks"])
def test_teachers_adversaries_and_their_optimisers_continue_too(tiny, tmp_path, workflow, method):
    def train(output: Path, *, stop: int | None = None) -> None:
        overrides = small(tiny, output, **{**SETTINGS, "max_iterations": 10, "run_preflight": False})
        made = workflow(TRAIN, f"configs/methods/{method}.json", run_id="training", **overrides)
        made.initialize()
        trainer = made.parser.get_parsed_content("train#trainer")
        if stop:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=stop), raise_stopped)
        made.run()

    def raise_stopped() -> None:
        raise StoppedError

    train(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        train(tmp_path / "stopped", stop=8)
    assert not (tmp_path / "stopped" / "models" / "model.pt").exists()
    train(tmp_path / "stopped")
    assert_same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
def test_twenty_random_stops(tiny, tmp_path, never_stopped, number):
    rng = random.Random(number)
    at, how = rng.randrange(4, ITERATIONS - 2), rng.choice([signal.SIGKILL, signal.SIGTERM])
    # The wait, a few iterations long, makes it any moment: within a step, a validation, or the writing of a checkpoint.
    stop_and_continue(tiny, tmp_path, at=at, how=how, wait=rng.uniform(0, 0.3), num_workers=rng.choice([0, 0, 2]))
    assert_same(weights(tmp_path), weights(never_stopped))


def test_the_first_ctrl_c_asks_for_a_checkpoint_and_the_second_stops_at_once(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    state, seen = run_state(tmp_path), []

    class Interrupted(Trainer):
        def run(self):
            signal.raise_signal(signal.SIGINT)
            seen.append(state.stop_requested)
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run_or_resume(Interrupted(), state)
        assert seen == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(SystemExit) as ended:
            SaveRun(state, interval=0)._save_if_due(Trainer(10))
        assert ended.value.code == 130 and [iteration for iteration, _ in state.checkpoints()] == [10]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_says_so_and_is_left_alone(tiny, never_stopped):
    before = (never_stopped / "models" / "model.pt").stat().st_mtime_ns
    finished = run_bundle("training", TRAIN, **small(tiny, never_stopped, **SETTINGS, sw_batch_size=3))
    assert finished.returncode == 0 and "goes on with changes" not in finished.stdout + finished.stderr
    assert f"finished: {ITERATIONS} iterations were done before" in finished.stdout
    assert (never_stopped / "models" / "model.pt").stat().st_mtime_ns == before


def test_no_checkpoint_lies_among_the_models(never_stopped):
    assert sorted(path.name for path in (never_stopped / "models").iterdir()) == [
        "model.json",
        "model.pt",
        "model_best.json",
        "model_best.pt",
    ]
    assert len(list((never_stopped / "checkpoints").iterdir())) == 2


def test_clients_and_the_id_run_start_anew(tiny, tmp_path, workflow):
    shorter = {**SETTINGS, "max_iterations": 4, "checkpoint_interval": 2}
    for _ in range(2):
        client = workflow(TRAIN, run_id="run", **small(tiny, tmp_path, **shorter))
        client.initialize()
        client.run()
        assert client.parser.get_parsed_content("train#trainer").state.iteration == 4
        assert len(log(tmp_path)) == 4


# --- checkpoints without a training ---


class Trainer:
    """As much of a trainer as a checkpoint needs."""

    scaler = None

    def __init__(self, iteration: int = 0) -> None:
        self.state = SimpleNamespace(iteration=iteration, epoch=0, epoch_length=10, max_epochs=3)
        self.ran_from: int | None = None

    def run(self) -> None:
        self.ran_from = self.state.iteration


SAVED = {"parts": {"network": {"weight": torch.full((1, 1), 4.0)}}, "scaler": None} | dict.fromkeys(
    ("best_metric", "best_metric_epoch"), 1
)


def run_state(directory: Path, *, value: float = 0.0, **settings) -> RunState:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric=0.5, best_metric_epoch=2))
    return RunState(directory, {"network": network}, evaluator, {"seed": 0, "patch_size": (16, 16), **settings})


def test_the_last_two_checkpoints_are_kept(tmp_path):
    state = run_state(tmp_path)
    for iteration in (5, 10, 15, 100):
        state.save(Trainer(iteration))
    assert [path.name for _, path in state.checkpoints()] == [
        "checkpoint_iteration_100.pt",
        "checkpoint_iteration_15.pt",
    ]


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"", lambda b: b[:100] + b"\x00" + b[101:]])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, caplog, damage):
    state = run_state(tmp_path, value=1.0)
    state.save(Trainer(10))
    run_state(tmp_path, value=2.0).save(Trainer(20))
    latest = state.checkpoints()[0][-1]
    latest.write_bytes(damage(latest.read_bytes()))
    trainer, resumed = Trainer(), run_state(tmp_path)
    run_or_resume(trainer, resumed)
    assert trainer.ran_from == 10
    assert resumed.parts["network"].weight.item() == 1.0
    assert f"checkpoint {latest} is damaged" in caplog.text


def test_every_changed_or_missing_byte_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_atomically({"a": torch.arange(3.0)}, path, checksum=True)
    whole = path.read_bytes()
    assert load_if_whole(path)["a"].tolist() == torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2]
    # It is in a zip archive as the format has it: all programs that read one check and ignore the comment.
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and len(archive.comment) == 64
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert load_if_whole(path) is None, place
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert load_if_whole(path) is None, end


def test_without_a_whole_checkpoint_the_run_starts_at_the_beginning(tmp_path):
    (tmp_path / "checkpoint_iteration_10.pt").write_bytes(b"not a checkpoint")
    trainer = Trainer()
    run_or_resume(trainer, run_state(tmp_path))
    assert trainer.ran_from == 0


def test_what_is_restored(tmp_path):
    run_state(tmp_path, value=3.0).save(Trainer(27))
    trainer, state = Trainer(), run_state(tmp_path)
    state.evaluator.state.best_metric = state.evaluator.state.best_metric_epoch = -1
    run_or_resume(trainer, state)
    assert trainer.ran_from == 27 and trainer.state.epoch == 2
    assert state.parts["network"].weight.item() == 3.0
    assert (state.evaluator.state.best_metric, state.evaluator.state.best_metric_epoch) == (0.5, 2)


@pytest.mark.parametrize(
    "saved, now, restored",
    [("cpu", "cpu", True), ("disabled", "cpu", False), ("cpu", "disabled", False), ("cpu", None, False)],
    ids=["on", "switched on", "device without", "switched off"],
)
def test_the_gradient_scaler_continues_where_there_is_one(tmp_path, saved, now, restored):
    def scaler(kind: str | None) -> torch.amp.GradScaler | None:
        return kind and torch.amp.GradScaler("cpu", enabled=kind == "cpu")

    trained = Trainer(10)
    trained.scaler = scaler(saved)
    if saved == "cpu":
        trained.scaler.scale(torch.ones(()))
        trained.scaler.update(new_scale=128.0)
    run_state(tmp_path).save(trained)
    engine = Engine(lambda engine, batch: None)
    engine.state.iteration, engine.state.epoch, engine.state.max_epochs, engine.state.epoch_length = 0, 0, 3, 10
    run_state(tmp_path).restore(run_state(tmp_path).latest(), engine)
    engine.scaler = scaler(now)  # as the trainer makes it when it starts
    engine.fire_event(Events.STARTED)
    if now == "cpu":
        assert engine.scaler.get_scale() == (128.0 if restored else 65536.0)


def test_what_a_killed_process_left_of_a_checkpoint_is_removed_when_the_run_goes_on(tmp_path):
    state = run_state(tmp_path)
    state.save(Trainer(10))
    (whole,) = tmp_path.iterdir()
    (tmp_path / ".writing-123").write_bytes(b"a part")
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "iteration", 10))
    SaveRun(state, interval=0).attach(engine)
    engine.run(range(3), max_epochs=1, epoch_length=3)
    assert list(tmp_path.iterdir()) == [whole]


@pytest.mark.parametrize("at", ["before it is renamed", "before an old one goes"])
def test_a_stop_between_the_writes_of_a_checkpoint_leaves_one_to_continue_from(tmp_path, monkeypatch, at):
    state = run_state(tmp_path, value=1.0)
    for iteration in (10, 20):
        state.save(Trainer(iteration))

    class PowerCutError(BaseException):
        pass

    def cut(*_):
        raise PowerCutError

    monkeypatch.setattr(*((checkpoints.os, "fsync") if "renamed" in at else (checkpoints, "flush_folder")), cut)
    with pytest.raises(PowerCutError):
        state.save(Trainer(25))
    monkeypatch.undo()
    trainer = Trainer()
    run_or_resume(trainer, run_state(tmp_path))
    assert trainer.ran_from == (20 if at == "before it is renamed" else 25)
    assert len(state.checkpoints()) == (2 if at == "before it is renamed" else 3)
    state.save(Trainer(28))
    assert len(list(tmp_path.iterdir())) == 2


def test_never_starts_anew(tmp_path):
    run_state(tmp_path, value=3.0).save(Trainer(27))
    trainer = Trainer()
    run_or_resume(trainer, run_state(tmp_path), "never")
    assert trainer.ran_from == 0


def test_changed_settings_are_refused_with_both_values(tmp_path):
    run_state(tmp_path, optimizer={"lr": 1, "momentum": 0.9}).save(Trainer(10))
    with pytest.raises(UserError) as error:
        run_or_resume(Trainer(), run_state(tmp_path, optimizer={"lr": 1, "betas": (0, 1)}))
    assert "optimizer#momentum was 0.9 and is null; optimizer#betas was null and is [0, 1]" in str(error.value)
    assert "lr" not in str(error.value) and "seed" not in str(error.value)


def test_a_checkpoint_of_a_former_version_is_compared_by_the_settings_that_it_has(tmp_path):
    run_state(tmp_path, num_labeled=8).save(Trainer(10))
    now = {"dropout": 0.5}
    trainer = Trainer()
    run_or_resume(trainer, run_state(tmp_path, **now, num_labeled=8))
    assert trainer.ran_from == 10
    with pytest.raises(UserError, match="num_labeled was 8 and is 16"):
        run_or_resume(Trainer(), run_state(tmp_path, **now, num_labeled=16))


@pytest.mark.parametrize(
    "name, change, refused",
    [
        ("objective", {"_target_": "torch.nn.Identity"}, True),
        ("optimizer#momentum", 0.8, True),
        ("train#crop_transforms", [], True),
        ("spacing", [1, 1, 1], True),
        ("output_dir", "elsewhere", False),
        ("log_interval", 7, False),
        ("num_workers", 3, False),
        ("amp", True, False),
        ("network", "$@network_def", False),
    ],
)
def test_which_ids_are_kept_is_what_the_table_of_settings_says(tmp_path, name, change, refused):
    config = ConfigParser.load_config_file(ROOT / TRAIN)
    run_state(tmp_path, **fixed_settings(config)).save(Trainer(10))
    parser = ConfigParser(config)
    parser[name] = change
    changed = run_state(tmp_path, **fixed_settings(parser.get()))
    with pytest.raises(UserError, match=name) if refused else nullcontext():
        run_or_resume(Trainer(), changed)


def test_every_id_that_a_run_keeps_is_one_of_train_json():
    assert set(fixed_settings(ConfigParser.load_config_file(ROOT / TRAIN))) == FIXED
    assert not FIXED & FREE and fixed_settings(None) == {}


def test_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resume is 'yes'"):
        run_or_resume(Trainer(), run_state(tmp_path), "yes")


class Full:
    """Something that cannot be written to the end, as on a full disk."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, caplog):
    state = run_state(tmp_path, value=1.0)
    state.save(Trainer(10))
    state.parts["network"].state_dict = lambda: {"weight": Full()}
    state.save(Trainer(20))
    assert "no checkpoint at iteration 20" in caplog.text and "No space left" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_iteration_10.pt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    save_atomically({"a": 1}, path)
    with pytest.raises(OSError):
        save_atomically({"a": Full()}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow_is_an_oserror_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(OSError, match="could not be written|File too large"):
            save_atomically({"a": torch.zeros(100_000)}, tmp_path / "model.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_saved_at_the_interval_behind_the_validation_and_at_the_end(tmp_path):
    seen = []
    state = run_state(tmp_path)
    state.save = lambda engine: seen.append(("saved", engine.state.iteration))
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append("validated"))
    SaveRun(state, interval=2).attach(engine)
    engine.run(range(4), max_epochs=2, epoch_length=4)
    expected = [("saved", 2), "validated", ("saved", 4), ("saved", 6), "validated", ("saved", 8)]
    assert seen == expected
