"""Description: records the settings and environment of a run, and warns about changes when it continues."""

import json
import logging
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scripts.data.digest import data_digest
from scripts.files import write_text
from scripts.ranks import rank
from scripts.settings import flat, on_resume, with_texts

from .record import environment

logger = logging.getLogger(__name__)

# A reference of a config ("@output_dir") has no host before it.
CREDENTIALS = re.compile(r"(\b\w[\w+.-]*://)[^/\s@'\"]+@")
# Differences of settings that a message names, and the characters of a value.
MOST_NAMED, LONGEST = 12, 60


def without_credentials(value: Any) -> Any:
    """Replaces the credentials of addresses (https://u:p@host) in a text, or a nest of texts, by ``***``."""
    return with_texts(value, lambda text: CREDENTIALS.sub(r"\1***@", text))


class RunDescription:
    """``<output_dir>/run.json``: the starts of a run, its merged config, and an identifier saved with its weights.

    A start is the time (UTC), the command line, the :func:`~scripts.training.record.environment` and the
    :func:`~scripts.data.digest.data_digest`. A run that continues adds its start to those before; the config is that of
    the last start. ``config`` holds what the files and overrides came to, with ``$`` and ``@`` unevaluated. It is also
    written to ``<output_dir>/config.json``, a config file that repeats the run and that its evaluation starts from.

    Args:
        output_dir: created if need be.
        device: of the training.
        data: name -> cases.
        config: the merged config; None where the program that runs the bundle keeps it to itself.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        device: torch.device | str,
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(output_dir) / "run.json"
        # Programs may override ids by objects, such as a torch.device.
        self.config = None if config is None else without_credentials(json.loads(json.dumps(dict(config), default=str)))
        self.start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": without_credentials(list(sys.argv)),
            **environment(torch.device(device)),
            "data": data_digest(data or {}),
        }
        # Tells the weights of this run from those of others, also where two start in the same second.
        self.digest = secrets.token_hex(8)

    def write(self, *, continued: bool) -> None:
        """Adds this start to those of a continued run, or makes it the first. Only rank 0 writes."""
        if rank() > 0:
            return
        former = described(self.path.parent) if continued else {}
        self.digest = former.get("digest", self.digest)
        starts = [*former.get("starts", []), self.start]
        content = {"digest": self.digest, "starts": starts, "config": self.config}
        write_text(self.path, json.dumps(content, indent=4) + "\n")
        if self.config is not None:
            write_text(self.path.with_name("config.json"), json.dumps(self.config, indent=4) + "\n")

    def warn_of_changes(self) -> None:
        """Names the settings, data and versions of a run that continues that are not those of its last start.

        What :mod:`scripts.settings` lets change freely is left out.
        """
        former = described(self.path.parent)
        if rank() > 0 or not former:
            return
        before, now = (_compared(*of) for of in ((former["starts"][-1], former["config"]), (self.start, self.config)))
        if changes := differences(before, now):
            more = [f"and {len(changes) - MOST_NAMED} more"] if len(changes) > MOST_NAMED else []
            logger.warning(
                "this run goes on with changes since its last start: %s. Where they change the training, its result "
                "mixes both; to start from the beginning instead, give --resume never.",
                "; ".join([*changes[:MOST_NAMED], *more]),
            )


def described(folder: str | Path) -> dict[str, Any]:
    """The content of ``run.json`` in a run's folder; empty where a program runs the bundle that writes none."""
    path = Path(folder) / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two nests of settings differ in, as "optimizer#momentum was 0.9 and is 0.8"."""
    old, new = flat(before), flat(now)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}" for name in changed]


def _compared(start: dict[str, Any], config: dict[str, Any] | None) -> dict[str, Any]:
    environment_and_data = {name: value for name, value in start.items() if name not in ("time", "command")}
    settings = {name: value for name, value in (config or {}).items() if on_resume(name) != "free"}
    return {"environment": environment_and_data, **settings}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
