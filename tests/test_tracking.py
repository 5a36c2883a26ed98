"""Tests of scripts/tracking: what MLflow's own client and TensorBoard read back, and servers that are away."""

from __future__ import annotations

import csv
import json
import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import monai
import pytest
import torch
from conftest import ROOT, ids, run_process, small, write_dataset
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from scripts import tracking
from scripts.data.digest import data_digest
from scripts.files import sqlite_uri
from scripts.tracking import MLflowTracking, plain_values, send_to_mlflow
from scripts.training import RunEvents
from scripts.training.description import without_credentials
from scripts.workflow import Workflow

mlflow = pytest.importorskip("mlflow")

TRAIN, TRACKING = "configs/train.json", "configs/tracking/mlflow.json"
ITERATIONS, STOP = 6, 5
SECRETS = {"MLFLOW_TRACKING_PASSWORD": "s3cret-1-value", "MLFLOW_TRACKING_TOKEN": "s3cret-2-value"}
SETTINGS = {
    "max_iterations": ITERATIONS,
    "checkpoint_interval": 2,
    "val_interval": 1,
    "epoch_length": 3,
    "num_epochs": 2,
    "picture_interval": 3,
    "gradient_norm_interval": 2,
    "num_classes": 2,
    "class_names": ["anterior", "posterior"],
    "run_name": "first",
    "run_preflight": False,
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class StoppedError(Exception):
    pass


def train(dataset: Path, output: Path, *, stop: int | None = None, **changes) -> None:
    """Runs the id "training" in this process; an error in iteration ``stop`` ends it."""
    overrides = ids(small(dataset, output, **{**SETTINGS, **changes}))
    files = [str(ROOT / name) for name in (TRAIN, TRACKING)] if "tracking" in changes else [str(ROOT / TRAIN)]
    made = Workflow(files, run_id="training", logging_file=False, bundle_root=str(ROOT), **overrides)
    made.initialize()

    def raise_stopped() -> None:
        raise StoppedError

    if stop:
        trainer = made.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED(once=stop), raise_stopped)
    made.run()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Output folder of a run that was tracked, stopped behind its checkpoint, and continued by the same settings."""
    folder = tmp_path_factory.mktemp("tracked")
    data = write_dataset(folder / "data", num_classes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(tracking, "SHORT_WAIT", 600)
        patch.setattr(tracking, "WAIT", 600)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        options = {"tracking": "mlflow", "experiment_name": "tiny"}
        with pytest.raises(RuntimeError):
            train(data, folder / "out", stop=STOP, **options)
        client = mlflow.MlflowClient(f"sqlite:///{folder / 'out' / 'mlruns.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
        train(data, folder / "out", **options)
    return SimpleNamespace(data=data, output=folder / "out", client=client, stopped=run)


@pytest.fixture
def run(tracked):
    """The run as the client finds it."""
    (found,) = tracked.client.search_runs([tracked.client.get_experiment_by_name("tiny").experiment_id])
    return found


# --- what is recorded ---


def test_a_continued_run_goes_on_in_the_same_mlflow_run(tracked, run):
    assert run.info.run_id == tracked.stopped.info.run_id and run.info.run_name == "first"
    assert (tracked.stopped.info.status, run.info.status) == ("FAILED", "FINISHED")


def test_every_column_of_the_logs_is_recorded_once_with_its_iteration(tracked, run):
    logs = {
        "train": rows(tracked.output / "training_log.csv"),
        "validation": rows(tracked.output / "validation_log.csv"),
    }
    assert [row["iteration"] for row in logs["train"]] == [str(n + 1) for n in range(ITERATIONS)]
    expected = {}
    for group, log in logs.items():
        for row in log:
            for name, value in row.items():
                if value and name not in ("iteration", "epoch"):
                    expected.setdefault(f"{group}/{name}", {})[int(row["iteration"])] = float(value)
    assert set(run.data.metrics) == set(expected)
    for name, values in expected.items():
        history = tracked.client.get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in history) == sorted(values), name
        if name != "train/seconds":  # of what was done twice the log has the second
            assert {point.step: point.value for point in history} == pytest.approx(values, nan_ok=True)
    terms = ("loss", "learning_rate", "gradient_norm", "pseudo", "pseudo_weight", "pseudo_gradient_norm")
    assert {f"train/{name}" for name in (*terms, "unanimous_share")} <= set(expected)
    dice = [f"validation/val_mean_dice{of}" for of in ("", "_anterior", "_posterior")]
    assert set(dice) <= set(expected) and list(expected[dice[1]]) == [3, 6]
    mean, anterior, posterior = (expected[name][6] for name in dice)
    assert mean == pytest.approx((anterior + posterior) / 2)


def test_settings_data_and_environment_are_recorded(tracked, run):
    parameters = run.data.params
    assert parameters["max_iterations"] == str(ITERATIONS) and parameters["num_labeled"] == "3"
    assert parameters["objective"] == "DBiSLObjective" and parameters["patch_size"] == "[16, 16, 16]"
    assert parameters["class_names"] == "['anterior', 'posterior']" and "network_def" not in parameters
    assert run.data.tags["environment.torch"] == torch.__version__
    assert run.data.tags["environment.git_commit"] and run.data.tags["environment.threads"]
    lists = json.loads((tracked.data / "dataset.json").read_text())
    cases = [{key: str(tracked.data / path) for key, path in case.items()} for case in lists["training"][:3]]
    digest = data_digest({"labeled": cases})["labeled"]["digest"]
    assert run.data.tags["data.labeled"] == f"3 cases, digest {digest}"
    assert run.data.tags["data.unlabeled"].startswith("3 cases, digest ")


def test_pictures_page_and_merged_config_are_artifacts(tracked, run, tmp_path):
    folder = Path(tracked.client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    drawn = sorted((tracked.output / "pictures").iterdir())
    assert [path.name for path in drawn] == ["iteration_00000003.png", "iteration_00000006.png"]
    assert [(folder / "pictures" / path.name).read_bytes() for path in drawn] == [path.read_bytes() for path in drawn]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 2 and config["optimizer"]["_target_"] == "torch.optim.SGD"
    assert (folder / "training_log.csv").read_bytes() == (tracked.output / "training_log.csv").read_bytes()


def test_tracking_changes_no_weight_and_the_stop_neither(tracked, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", list(sys.path))
    train(tracked.data, tmp_path, picture_interval=0, gradient_norm_interval=0)
    a, b = (torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (tracked.output, tmp_path))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert not {"mlruns.db", "tensorboard"} & {path.name for path in tmp_path.iterdir()}


def test_no_secret_of_the_environment_is_recorded(tracked):
    files = [path for path in tracked.output.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert [path for path in files for secret in SECRETS.values() if secret.encode() in path.read_bytes()] == []


def test_tensorboard_gets_every_term_and_the_validation(workflow, tiny, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = workflow(TRAIN, "configs/tracking/tensorboard.json", run_id="training", **small(tiny, tmp_path))
    made.initialize()
    made.run()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    for name in ("loss", "pseudo"):
        points = {point.step: point.value for point in found.Scalars(f"train/{name}")}
        logged = {int(row["iteration"]): float(row[name]) for row in rows(tmp_path / "training_log.csv")}
        assert {step: points[step] for step in logged} == pytest.approx(logged, rel=1e-5)
    assert found.Scalars("val_mean_dice")


def test_a_client_has_monais_handlers_and_the_command_has_ours(workflow, tiny, tmp_path, tracked):
    store = {"tracking": "mlflow", "tracking_uri": f"sqlite:///{tracked.output / 'mlruns.db'}"}

    def handlers_of(made) -> list[str]:
        made.initialize()
        names = ("train#handlers", "validate#handlers")
        found = [type(handler) for name in names for handler in made.parser.get_parsed_content(name)]
        return [kind.__name__ for kind in found if kind in (MLFlowHandler, MLflowTracking)]

    def command(**changes) -> Workflow:
        return Workflow([TRAIN], run_id="training", logging_file=False, **small(tiny, tmp_path, **changes))

    assert handlers_of(workflow(TRAIN, **small(tiny, tmp_path, **store))) == ["MLFlowHandler", "MLFlowHandler"]
    assert handlers_of(command(**store)) == handlers_of(command(mlflow=True)) == ["MLflowTracking"]
    assert handlers_of(command(**store, mlflow="false")) == handlers_of(command()) == []


# --- sending again, and servers that are away ---


def test_a_run_that_was_not_tracked_is_sent_later_and_nothing_twice(tracked, run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    for _ in range(2):
        tracking.main(str(tracked.output), uri=uri, experiment="later", name="first")
    assert uri in capsys.readouterr().out
    client = mlflow.MlflowClient(uri)
    (sent,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    assert sent.info.status == "FINISHED" and sent.data.params == run.data.params
    assert sent.data.metrics.keys() == run.data.metrics.keys()
    history = client.get_metric_history(sent.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]
    times = [point.timestamp for point in sorted(history, key=lambda point: point.step)]
    seconds = [float(row["seconds"]) for row in rows(tracked.output / "training_log.csv")]
    assert (times[-1] - times[0]) / 1000 == pytest.approx(seconds[-1] - seconds[0], abs=0.01)
    with pytest.raises(ValueError, match="training_log.csv"):
        tracking.main(str(tmp_path))


def test_more_values_than_a_request_takes_are_sent_in_several(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MOST_METRICS", 7)
    lines = ["iteration,seconds,loss,a", *(f"{n},{n},{n / 2},{n / 3}" for n in range(1, 6))]
    (tmp_path / "training_log.csv").write_text("\n".join(lines) + "\n6,6,", encoding="utf-8")
    sizes, log_batch = [], mlflow.MlflowClient.log_batch

    def count(self, run_id, metrics=(), **others):
        sizes.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", count)
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    number = send_to_mlflow(tmp_path, uri, "many", status=None)
    assert sizes == [0, 6, 6, 3]
    history = mlflow.MlflowClient(uri).get_metric_history(number, "train/a")
    assert {point.step: point.value for point in history} == pytest.approx({n: n / 3 for n in range(1, 6)})


class Follower(MLflowTracking):
    """Sends by ``send``; notes the status of every round."""

    def __init__(self, send) -> None:
        self.name = "the store"
        self.rounds, self.action = [], send

    def send(self, status):
        self.rounds.append(status)
        self.action(len(self.rounds))

    def follow(self, *, until: threading.Event | None = None) -> None:
        engine = Engine(lambda engine, batch: until and until.wait(600))
        engine.register_events(*RunEvents)
        engine.state.error = None
        self.attach(engine)
        engine.run([0])
        engine.fire_event(RunEvents.ENDED)


def test_a_store_that_was_away_is_tried_again_and_named_once(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "PAUSE", 0.01)
    recovered = threading.Event()

    def send(number):
        if number in (2, 3):
            raise ConnectionError("refused")
        if number > 4:
            recovered.set()

    follower = Follower(send)
    follower.follow(until=recovered)
    assert follower.rounds[-1] == "FINISHED" and set(follower.rounds[:-1]) == {None}
    assert len(caplog.messages) == 1 and "the store failed: ConnectionError: refused" in caplog.text


def test_nobody_waits_for_a_store_that_hangs(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "WAIT", 0.05)
    hanging = threading.Event()
    follower = Follower(lambda number: hanging.wait(600))
    follower.follow()
    assert follower.thread.is_alive() and "the store did not take everything" in caplog.text
    hanging.set()
    follower.thread.join(600)


def test_the_end_makes_one_last_attempt_without_the_pause(caplog):
    def send(number):
        raise OSError("away")

    follower = Follower(send)
    follower.follow()
    assert not follower.thread.is_alive() and follower.rounds[-1] == "FINISHED" and len(follower.rounds) <= 2
    assert "did not take everything" in caplog.text


@pytest.fixture
def dead_server():
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://somebody:s3cret@127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["refuses", "never answers"])
def test_training_ends_well_without_its_server(tiny, tmp_path, workflow, monkeypatch, caplog, dead_server, server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = f"http://somebody:s3cret@127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing if server == "refuses" else dead_server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    bundle = Workflow(
        TRAIN, logging_file=False, **small(tiny, tmp_path, tracking="mlflow", max_iterations=2, val_interval=9)
    )
    bundle.initialize()
    with caplog.at_level(logging.WARNING):
        bundle.run()
    assert (tmp_path / "models" / "model.pt").is_file() and not (tmp_path / "mlruns.db").exists()
    assert "MLflow at http://***@127.0.0.1" in caplog.text and "did not take everything" in caplog.text
    assert "s3cret" not in caplog.text


# --- parts ---


@pytest.mark.parametrize("uri", ["file:///data/runs", "/data/runs", "runs"])
def test_a_folder_is_refused_as_a_store_before_anything_is_done(tmp_path, uri, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=f"is '{uri}': MLflow keeps no runs in folders any more.*sqlite:////data"):
        MLflowTracking(tmp_path, uri=uri, experiment="a")


def test_packages_that_are_not_installed_are_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match="needs the package mlflow, which is not installed"):
        MLflowTracking(tmp_path, uri="sqlite:///a", experiment="a")


def test_a_run_that_is_not_tracked_asks_for_no_package_of_tracking(tiny, tmp_path):
    code = f"""
import sys
sys.modules["mlflow"] = sys.modules["tensorboard"] = None
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config("{TRAIN}")
parser.update({ {name: value for name, value in small(tiny, tmp_path).items()} })
parser.get_parsed_content("train#trainer")
assert "scripts.tracking" not in sys.modules
"""
    finished = run_process([sys.executable, "-c", code])
    assert finished.returncode == 0, finished.stderr


def test_passwords_within_addresses_are_left_out():
    nest = {"a": ["https://me:pw@host:5000/x", "--uri=postgresql+x://u:p@h/d"], "b": "$@output_dir + '/a://b'", "c": 1}
    assert without_credentials(nest) == {
        "a": ["https://***@host:5000/x", "--uri=postgresql+x://***@h/d"],
        "b": "$@output_dir + '/a://b'",
        "c": 1,
    }


def test_plain_values_are_neither_parts_nor_expressions():
    config = {
        "about": "x",
        "seed": 0,
        "stride": [8, 8],
        "names": ["@x"],
        "network": {"_target_": "x"},
        "b": "$1",
        "c": None,
    }
    assert plain_values(config) == {"seed": 0, "stride": [8, 8], "c": None}


def test_default_store_is_named_as_monai_names_it(tmp_path, monkeypatch):
    named = getattr(monai.utils, "path_to_sqlite_uri", None)
    if named is None:
        pytest.skip("this MONAI has no path_to_sqlite_uri to compare with")
    monkeypatch.chdir(tmp_path)
    for path in ("/data/run 1/mlruns.db", "outputs/a?b#c/mlruns.db", tmp_path / "ä" / "mlruns.db"):
        assert sqlite_uri(path) == named(path)


def test_make_mlflow_opens_the_store_of_a_run():
    def recipe(*arguments: str) -> str:
        command = ["make", "-n", "-o", "install", "mlflow", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "-m mlflow ui --backend-store-uri sqlite:///outputs/mlruns.db" in recipe()
    assert "--backend-store-uri sqlite:///a/mlruns.db" in recipe("OUTPUT=a")
