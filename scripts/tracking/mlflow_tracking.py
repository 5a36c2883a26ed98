"""MLflow: the logs, pictures, settings and environment of a run, which a continued run adds to."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.data.digest import data_digest
from scripts.files import replacing
from scripts.ranks import rank
from scripts.training.description import running_config, without_credentials
from scripts.training.record import environment

from .follower import Follower
from .mlflow_store import FAILED, FINISHED, STOPPED, End, File, MLflowStore, Run, Values
from .sender import Sender

URI = "MLFLOW_TRACKING_URI"
# Seconds to wait at the end, for a run that is complete and for one that is stopped, which may be killed soon after.
WAIT, SHORT_WAIT = 120, 15
AT_THE_END = ("training_log.csv", "validation_log.csv", "run.json")


class MLflowTracking(Follower):
    """Records a run in MLflow: every column of the logs, pictures, settings, data digest, environment, merged config.

    All is sent by a thread of its own, so that a server that is slow or away, from the start or in between, neither
    stops nor delays the training; what it missed is sent when it answers again. A run that is continued goes on in the
    same MLflow run, which ``<output_dir>/mlflow_run.json`` remembers.

    Args:
        output_dir: of the run.
        uri: of the store, such as ``sqlite:////data/mlruns.db``; the environment variable MLFLOW_TRACKING_URI goes
            before it, as in MONAI.
        experiment: name; made if need be.
        run_name: None takes the name of the folder.
        parameters: settings by name, beside those of the merged config that are plain values.
        data: name -> cases, of which a digest is recorded.

    Raises:
        ValueError: when the package ``mlflow`` is not installed, or the address is one of a folder.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        uri: str,
        experiment: str,
        run_name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        super().__init__(output_dir)
        if importlib.util.find_spec("mlflow") is None:
            raise ValueError(
                "tracking by MLflow needs the package mlflow, which is not installed: pip install mlflow, or leave out "
                "--tracking."
            )
        uri = os.environ.get(URI) or uri
        if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
            raise ValueError(
                f"tracking_uri (or {URI}) is {without_credentials(uri)!r}: MLflow keeps no runs in folders any more. "
                "Give a database, such as sqlite:////data/mlruns.db, or the http address of a server."
            )
        self.uri = uri
        self.experiment = experiment
        self.run_name = run_name or Path(output_dir).resolve().name
        self.parameters = dict(parameters or {})
        self.data = dict(data or {})
        self.config = running_config() or {}

    def begin(self, engine: Any) -> None:
        former = self._key()
        if engine.state.iteration and former:
            key = former
        else:
            key = uuid.uuid4().hex
            with replacing(self.output_dir / "mlflow_run.json") as path:
                path.write_text(json.dumps({"run_key": key}) + "\n", encoding="utf-8")
        tags = {f"environment.{name}": value for name, value in environment(torch.device(engine.state.device)).items()}
        for name, found in data_digest(self.data).items():
            tags[f"data.{name}"] = f"{found['cases']} cases, digest {found['digest']}"
        run = Run(
            uri=self.uri,
            experiment=self.experiment,
            name=self.run_name,
            key=key,
            replaced=former if former != key else None,
            parameters={**plain_values(self.config), **self.parameters},
            tags=tags,
            files={"config.json": json.loads(json.dumps(self.config, default=str))},
        )
        self.sender = Sender(MLflowStore(run).send, name=f"MLflow at {without_credentials(self.uri)}")

    def values(self, values: dict[str, float], iteration: int) -> None:
        self.sender.give(Values(values, iteration))

    def picture(self, path: Path, iteration: int) -> None:
        self.sender.give(File(path, "pictures"))

    def end(self, engine: Any) -> None:
        error = engine.state.error
        for name in AT_THE_END:
            self.sender.give(File(self.output_dir / name))
        status = FINISHED if error is None else FAILED if isinstance(error, Exception) else STOPPED
        self.sender.give(End(status))
        self.sender.close(WAIT if error is None else SHORT_WAIT)

    def _key(self) -> str | None:
        path = self.output_dir / "mlflow_run.json"
        return json.loads(path.read_text(encoding="utf-8"))["run_key"] if path.is_file() else None


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's uppermost level sets to a value: no parts, no expressions and references."""

    def plain(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return not isinstance(value, dict) and not (isinstance(value, str) and value.startswith(("$", "@", "%")))

    return {name: value for name, value in config.items() if name not in ("about", "tracking_uri") and plain(value)}


def monais_handlers_stand_back() -> bool:
    """Whether MONAI's own handlers of ``--tracking`` are left out: where ours is configured, and not in rank 0.

    They stop the training when the server does not answer, and know only the loss. A client that replaces
    ``train#handlers`` keeps them.
    """
    handlers = (running_config() or {}).get("train", {}).get("handlers", [])
    ours = f"{__package__}.{MLflowTracking.__name__}"
    return rank() > 0 or any(isinstance(handler, Mapping) and handler.get("_target_") == ours for handler in handlers)
