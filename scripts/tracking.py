"""Tracking: sends what a run's folder holds to MLflow, while the training goes on and afterwards.

    python -m scripts track --run outputs --uri http://server:5000 --experiment mine

What the store has already is not sent again, so that the same call serves the first time, after an outage of the
server, for a run that was continued, and for one that was not tracked.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ignite.engine import Engine, Events
from monai.utils import path_to_uri

from scripts.errors import UserError, print_briefly
from scripts.files import SQLITE, sqlite_uri
from scripts.settings import is_expression
from scripts.training import RunEvents
from scripts.training.description import described, without_credentials
from scripts.training.handlers import rows_of

logger = logging.getLogger(__name__)

URI = "MLFLOW_TRACKING_URI"
KEY = "run_digest"  # tag by which a run is found
LOGS = {"train": "training_log.csv", "validation": "validation_log.csv"}
FILES = ("config.json", "run.json", *LOGS.values())
# Seconds between two rounds, and to wait for the last: of a run that is complete, and of one that may be killed soon.
PAUSE, WAIT, SHORT_WAIT = 30, 120, 15
# Limits of MLflow for one request and for the value of a parameter, and the characters that it takes in a name.
MOST_METRICS, MOST_PARAMETERS, LONGEST = 1000, 100, 6000
FORBIDDEN = re.compile(r"[^\w\-./ :]")
# A killed run stays "RUNNING" until it is continued or sent again.
RUNNING, FINISHED, FAILED, STOPPED = "RUNNING", "FINISHED", "FAILED", "KILLED"
# MLflow's own would wait for minutes; here what failed is sent in the next round. Only the store gets anything.
SURROUNDINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MLflowTracking:
    """A handler whose thread sends what is new in a run's folder every 30 seconds, and when the run ends.

    A slow or unreachable store neither stops nor delays the training. A resumed training continues in the same MLflow
    run. See :func:`send_to_mlflow` for what is sent. List this handler after those that write the logs.

    Args:
        output_dir: of the run.
        uri: of the store, such as ``sqlite:////data/mlruns.db``; the environment variable MLFLOW_TRACKING_URI goes
            before it, as in MONAI.
        experiment: name; made if need be.
        run_name: None takes the name of the folder.

    Raises:
        UserError: when the package ``mlflow`` is not installed, or the address is one of a folder.
    """

    def __init__(self, output_dir: str | Path, *, uri: str, experiment: str, run_name: str | None = None) -> None:
        self.uri = checked_uri(os.environ.get(URI) or uri)
        self.experiment = experiment
        self.run_name = run_name
        self.output_dir = Path(output_dir)
        self.name = f"MLflow at {without_credentials(self.uri)}"

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(RunEvents.ENDED, self._end)

    def send(self, status: str | None) -> None:
        """Sends what is new; ``status`` is that of MLflow when the run ends, before that None."""
        send_to_mlflow(self.output_dir, self.uri, self.experiment, run_name=self.run_name, status=status)

    def _start(self, engine: Any) -> None:
        self.status: str | None = None
        self.away = False
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._follow, name=f"sender to {self.name}", daemon=True)
        self.thread.start()

    def _end(self, engine: Any) -> None:
        if not hasattr(self, "thread"):  # a handler that starts before this one may have failed
            return
        error = engine.state.error
        self.status = FINISHED if error is None else FAILED if isinstance(error, Exception) else STOPPED
        self.ending.set()
        self.thread.join(WAIT if error is None else SHORT_WAIT)
        if self.thread.is_alive() or self.away:
            logger.warning("%s did not take everything; send it by python -m scripts track.", self.name)

    def _follow(self) -> None:
        while True:
            last = self.ending.is_set()  # before it is sent: what is written until the end is part of the last round
            try:
                self.send(self.status if last else None)
                self.away = False
            except Exception as error:  # no record is worth a training
                if not self.away:
                    line = without_credentials(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
                    logger.warning("%s failed: %s. Training goes on; it is tried again.", self.name, line)
                self.away = True
            if last:
                return
            self.ending.wait(PAUSE)


def send_to_mlflow(
    folder: str | Path, uri: str, experiment: str, *, run_name: str | None = None, status: str | None = FINISHED
) -> str:
    """Sends what MLflow lacks of a run: columns of the logs, pictures, settings, data digest, environment, config.

    Args:
        folder: output_dir of the run; ``run.json`` in it says which run it is.
        uri: of the store.
        experiment: name; made if need be.
        run_name: None takes the name of the folder.
        status: the status that the run then has; None while it goes on.

    Returns:
        The id of the run in MLflow.
    """
    folder = Path(folder)
    client = _client(uri)
    about = described(folder)
    key, starts = about.get("digest") or str(folder.resolve()), about.get("starts") or [{}]
    found = client.get_experiment_by_name(experiment)
    # Artifacts lie beside a database in a file; otherwise the server decides.
    beside = path_to_uri(Path(unquote(uri.removeprefix(SQLITE))).parent / "mlruns") if uri.startswith(SQLITE) else None
    place = found.experiment_id if found else client.create_experiment(experiment, beside)
    name = run_name or folder.resolve().name
    runs = client.search_runs([place], f"tags.{KEY} = '{key}'")
    run = runs[0] if runs else client.create_run(place, run_name=name, tags={KEY: key})
    number = run.info.run_id
    if run.info.status != RUNNING:
        client.update_run(number, status=RUNNING)
    _send_description(client, run, about.get("config") or {}, starts[-1])
    for group in LOGS:
        _send_log(client, run, folder, group)
    present = {artifact.path for part in ("", "pictures") for artifact in client.list_artifacts(number, part or None)}
    for path in pictures(folder):
        if f"pictures/{path.name}" not in present:
            client.log_artifact(number, str(path), "pictures")
    for path in (folder / file for file in FILES):
        if path.is_file() and (status or path.name not in present):
            client.log_artifact(number, str(path))
    if status:
        client.set_terminated(number, status)
    return number


def _send_description(client: Any, run: Any, config: Mapping[str, Any], began: Mapping[str, Any]) -> None:
    from mlflow.entities import Param, RunTag

    facts = {f"environment.{k}": v for k, v in began.items() if k not in ("time", "command", "data")}
    for name, data in began.get("data", {}).items():
        facts[f"data.{name}"] = f"{data['cases']} cases, digest {data['digest']}"
    tags = [RunTag(_name(name), str(value)) for name, value in facts.items()]
    parameters = plain_values(config)
    for name, part in (("objective", "objective"), ("network", "network_def")):
        if isinstance(config.get(part), dict) and "_target_" in config[part]:
            parameters[name] = config[part]["_target_"].rpartition(".")[-1]
    new = [Param(_name(k), str(v)[:LONGEST]) for k, v in parameters.items() if _name(k) not in run.data.params]
    for start in range(0, max(len(new), 1), MOST_PARAMETERS):
        client.log_batch(run.info.run_id, params=new[start : start + MOST_PARAMETERS], tags=tags)


def _send_log(client: Any, run: Any, folder: Path, group: str) -> None:
    """The rows of a log that the run lacks. A row is within one request, so that one of its columns tells for all."""
    from mlflow.entities import Metric

    rows = list(logged(folder, group))
    if not rows:
        return
    first = _name(next(iter(rows[0][2])))
    known = {point.step for point in client.get_metric_history(run.info.run_id, first)}
    new = [
        [Metric(_name(name), value, milliseconds, iteration) for name, value in values.items()]
        for iteration, milliseconds, values in rows
        if iteration not in known
    ]
    at_once = max(1, MOST_METRICS // max(map(len, new), default=1))
    for start in range(0, len(new), at_once):
        client.log_batch(run.info.run_id, metrics=[m for row in new[start : start + at_once] for m in row])


def logged(folder: Path, group: str) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Of every row of a log: iteration, when it was written (ms), its values as ``<group>/<column>``."""
    path = folder / LOGS[group]
    rows = rows_of(path)
    now = path.stat().st_mtime if rows else time.time()
    last = float(rows[-1].get("seconds") or 0) if rows else 0
    for row in rows:
        values = {f"{group}/{k}": float(v) for k, v in row.items() if v and k not in ("iteration", "epoch")}
        yield int(row["iteration"]), int(1000 * (now - last + float(row.get("seconds") or last))), values


def pictures(folder: Path) -> Sequence[Path]:
    return sorted((folder / "pictures").glob("iteration_*.png"))


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's uppermost level sets to a value: no parts, no expressions and references."""

    def plain(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return not isinstance(value, dict) and not is_expression(value)

    return {name: value for name, value in config.items() if name not in ("about", "tracking_uri") and plain(value)}


def checked_uri(uri: str) -> str:
    """``uri``, which MLflow can use.

    Raises:
        UserError: when the package ``mlflow`` is not installed, or the address is one of a folder.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "tracking by MLflow needs the package mlflow, which is not installed: pip install mlflow, or leave out "
            "--tracking."
        )
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
        raise UserError(
            f"tracking_uri (or {URI}) is {without_credentials(uri)!r}: MLflow keeps no runs in folders any more. Give "
            "a database, such as sqlite:////data/mlruns.db, or the http address of a server."
        )
    return uri


def _client(uri: str) -> Any:
    for name, value in SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow"):  # which tell of every table of a new store
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()
    return mlflow.MlflowClient(uri)


def _name(name: str) -> str:
    """``name`` with the characters that MLflow takes in a key."""
    return FORBIDDEN.sub("_", name)[:250]


def main(
    run: str, uri: str | None = None, experiment: str = "semi_supervised_segmentation", name: str | None = None
) -> None:
    """Sends a run that has ended to MLflow, or what MLflow missed of it.

    Args:
        run: output_dir of the training.
        uri: of the store; MLFLOW_TRACKING_URI of the environment goes before it; by default <run>/mlruns.db.
        experiment: name; made if need be.
        name: of the run; by default the folder's.

    Raises:
        UserError: when there is no run.
    """
    folder = Path(str(run))
    if not rows_of(folder / LOGS["train"]):
        raise UserError(f"{folder / LOGS['train']} is missing or empty: give the output_dir of a training as --run.")
    store = checked_uri(os.environ.get(URI) or uri or sqlite_uri(folder / "mlruns.db"))
    number = send_to_mlflow(folder, store, experiment, run_name=name)
    print(f"{folder} is run {number} of experiment {experiment} in {without_credentials(store)}")


if __name__ == "__main__":
    import fire

    print_briefly()
    fire.Fire(main)
