"""MLflow store: one run in MLflow, found again by its key, that takes values and files any number of times."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from monai.utils import path_to_uri

from scripts.files import SQLITE

KEY = "run_key"  # tag by which a run is found
# Limits of MLflow for one request and for the value of a parameter.
MOST_METRICS, MOST_PARAMETERS, LONGEST = 1000, 100, 6000
# Of a run. One that was killed stays "running" until it is continued.
RUNNING, FINISHED, FAILED, STOPPED = "RUNNING", "FINISHED", "FAILED", "KILLED"
FORBIDDEN = re.compile(r"[^\w\-./ :]")
# MLflow's own would wait for minutes; here an attempt that failed is repeated later.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@dataclass(frozen=True)
class Values:
    """Metrics by name, of an iteration."""

    metrics: Mapping[str, float]
    iteration: int
    milliseconds: int = field(default_factory=lambda: int(time.time() * 1000))


@dataclass(frozen=True)
class File:
    """A file to keep, in a folder of the run's artifacts ("" for the uppermost)."""

    path: Path
    folder: str = ""


@dataclass(frozen=True)
class End:
    """The run is over, with a status of MLflow's."""

    status: str


@dataclass(frozen=True)
class Run:
    """What a run is from its start on.

    Attributes:
        uri: of the store; None for that of the environment variable MLFLOW_TRACKING_URI.
        experiment: name; made if need be.
        name: of the run.
        key: that no other run has, and a continued run keeps.
        replaced: key of a run that this one starts anew, for which it is over; None if there is none.
        parameters: what was asked for; those that a continued run has already stay as they are.
        tags: such as versions.
        files: name -> content (nest of JSON) of further artifacts.
    """

    uri: str | None
    experiment: str
    name: str
    key: str
    replaced: str | None
    parameters: Mapping[str, Any]
    tags: Mapping[str, Any]
    files: Mapping[str, Any]


class MLflowStore:
    """Sends to one run of MLflow; every failure is an exception of MLflow's, after which the same may be sent again.

    What the run has already is not sent twice: iterations whose values it has, as of a run that is continued from
    before the last of them, and pictures.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.client: Any = None

    def send(self, things: list[Values | File | End]) -> None:
        """Sends in order, and removes from the front what MLflow has taken."""
        try:
            if self.client is None:
                self._connect()
            while things:
                if isinstance(things[0], Values):
                    self._send_values(things)
                    continue
                if isinstance(things[0], File):
                    self._send_file(things[0])
                else:
                    self.client.set_terminated(self.id, things[0].status)
                things.pop(0)
        except Exception:
            self.client = None  # whether the last request was carried out is only known by asking again
            raise

    def _connect(self) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        # Nothing is sent to anybody but the store.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow"):  # which tell of every table of a new store
            logging.getLogger(name).setLevel(logging.WARNING)
        import mlflow
        from mlflow.entities import Param, RunTag
        from mlflow.telemetry import set_telemetry_client

        set_telemetry_client()
        client = mlflow.MlflowClient(self.run.uri)
        experiment = client.get_experiment_by_name(self.run.experiment)
        place = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(self.run.experiment, _artifacts(client))
        )
        for former in _runs(client, place, self.run.replaced):
            if former.info.status == RUNNING:
                client.set_terminated(former.info.run_id, STOPPED)
        found = _runs(client, place, self.run.key)
        run = found[0] if found else client.create_run(place, run_name=self.run.name, tags={KEY: self.run.key})
        self.id = run.info.run_id
        if run.info.status != RUNNING:
            client.update_run(self.id, status=RUNNING)
        parameters = [
            Param(_name(name), str(value)[:LONGEST])
            for name, value in self.run.parameters.items()
            if _name(name) not in run.data.params
        ]
        tags = [RunTag(_name(name), str(value)) for name, value in self.run.tags.items()]
        for start in range(0, max(len(parameters), 1), MOST_PARAMETERS):
            client.log_batch(self.id, params=parameters[start : start + MOST_PARAMETERS], tags=tags)
        for name, content in self.run.files.items():
            client.log_dict(self.id, content, name)
        # A log's row is one request, so that one of its columns tells for all.
        columns = {name.partition("/")[0]: name for name in run.data.metrics if not name.startswith("train/")}
        columns["train"] = "train/loss"
        self.known = {
            group: {point.step for point in client.get_metric_history(self.id, name)} if found else set()
            for group, name in columns.items()
        }
        self.pictures = {artifact.path for artifact in client.list_artifacts(self.id, "pictures")}
        self.client = client

    def _send_values(self, things: list[Any]) -> None:
        """As many of the first things as are values and fit into a request, which MLflow carries out as a whole."""
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        taken = 0
        for thing in things:
            if not isinstance(thing, Values) or len(metrics) + len(thing.metrics) > MOST_METRICS:
                break
            metrics += [
                Metric(_name(name), value, thing.milliseconds, thing.iteration)
                for name, value in thing.metrics.items()
                if thing.iteration not in self.known.get(name.partition("/")[0], ())
            ]
            taken += 1
        if metrics:
            self.client.log_batch(self.id, metrics=metrics)
        del things[:taken]

    def _send_file(self, file: File) -> None:
        if f"{file.folder}/{file.path.name}" in self.pictures or not file.path.is_file():
            return
        self.client.log_artifact(self.id, str(file.path), file.folder or None)


def _runs(client: Any, experiment: str, key: str | None) -> list[Any]:
    return list(client.search_runs([experiment], f"tags.{KEY} = '{key}'")) if key else []


def _artifacts(client: Any) -> str | None:
    """Where a new experiment keeps its files: beside a database in a file, else where the server decides."""
    uri = client.tracking_uri
    return path_to_uri(Path(unquote(uri.removeprefix(SQLITE))).parent / "mlruns") if uri.startswith(SQLITE) else None


def _name(name: str) -> str:
    """``name`` with the characters that MLflow takes in a key."""
    return FORBIDDEN.sub("_", name)[:250]
