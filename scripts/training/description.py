"""Description: records the settings and environment of a run, and warns about changes when it continues."""

from __future__ import annotations

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
from scripts.files import replacing
from scripts.ranks import rank

from .record import environment

logger = logging.getLogger(__name__)

# A reference of a config ("@output_dir") has no host before it.
CREDENTIALS = re.compile(r"(\b\w[\w+.-]*://)[^/\s@'\"]+@")
# Differences of settings that a message names, and the characters of a value.
MOST_NAMED, LONGEST = 12, 60


def without_credentials(value: Any) -> Any:
    """Replaces the credentials of addresses (https://u:p@host) in a text, or a nest of texts, by ``***``."""
    if isinstance(value, str):
        return CREDENTIALS.sub(r"\1***@", value)
    if isinstance(value, dict):
        return {key: without_credentials(item) for key, item in value.items()}
    return [without_credentials(item) for item in value] if isinstance(value, list) else value


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
        self.config_path = Path(output_dir) / "config.json"
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
        former = self._former() if continued else {}
        self.digest = former.get("digest", self.digest)
        content = {"digest": self.digest, "starts": [*former.get("starts", []), self.start], "config": self.config}
        files = {self.path: content} if self.config is None else {self.path: content, self.config_path: self.config}
        for path, written in files.items():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(written, indent=4) + "\n", encoding="utf-8")

    def warn_of_changes(self) -> None:
        """Warns which settings, data and versions of a continued run differ from those of its last start."""
        former = self._former()
        if rank() > 0 or not former["starts"]:
            return
        before, now = (_compared(*of) for of in ((former["starts"][-1], former["config"]), (self.start, self.config)))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            changed = [f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}" for name in names]
            more = [f"and {len(changed) - MOST_NAMED} more"] if len(changed) > MOST_NAMED else []
            logger.warning(
                "this run goes on with changes since its last start: %s. Where they change the training, its result "
                "mixes both; to start from the beginning instead, give --resume never.",
                "; ".join([*changed[:MOST_NAMED], *more]),
            )

    def _former(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {"starts": [], "config": None}
        return json.loads(self.path.read_text(encoding="utf-8"))


def _compared(start: dict[str, Any], config: dict[str, Any] | None) -> dict[str, Any]:
    environment_and_data = {name: value for name, value in start.items() if name not in ("time", "command")}
    settings = {name: value for name, value in (config or {}).items() if name != "about"}
    return flat({"environment": environment_and_data, **settings})


def flat(config: Any, name: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by their ids, such as ``optimizer#momentum``; lists are kept whole."""
    if not isinstance(config, dict):
        return {name: config} if name else {}
    return {
        key: value
        for inner in config
        for key, value in flat(config[inner], f"{name}#{inner}" if name else inner).items()
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
