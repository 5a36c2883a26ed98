"""Description: writes what a run was asked to do and where it runs, when it starts."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.data.digest import data_digest
from scripts.ranks import rank

from .record import environment
from .resume import RunState

# A reference of a config ("@output_dir") has no host before it.
CREDENTIALS = re.compile(r"(\b\w[\w+.-]*://)[^/\s@'\"]+@")


def running_config() -> dict[str, Any] | None:
    """The merged config, overrides included, whose item is just being made or run; None outside of one.

    MONAI gives its config items no way to see the whole, so it is looked up among the callers. Passwords within
    addresses are left out.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return without_credentials({name: value for name, value in parser.get().items() if name != "_meta_"})
        frame = frame.f_back
    return None


def without_credentials(value: Any) -> Any:
    """``value``, a text or a nest of them, with ``***`` for what stands before the @ of an address (https://u:p@host)."""
    if isinstance(value, str):
        return CREDENTIALS.sub(r"\1***@", value)
    if isinstance(value, dict):
        return {key: without_credentials(item) for key, item in value.items()}
    return [without_credentials(item) for item in value] if isinstance(value, list) else value


def describe_run(
    output_dir: str | Path,
    *,
    device: torch.device | str,
    run_state: RunState,
    resume: str,
    data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Writes ``<output_dir>/run.json``: the starts of the run and its merged config.

    A start is the time (UTC), the command line, the :func:`~scripts.training.record.environment` and
    the :func:`~scripts.data.digest.data_digest`. A run that
    continues adds its start to those before; the config is that of the last start. ``config`` holds what the files and
    overrides came to, with ``$`` and ``@`` unevaluated: it is itself a config file that repeats the run.

    Args:
        output_dir: created if need be.
        device: of the training.
        run_state: tells by its checkpoints whether the run continues.
        resume: "auto" or "never", see :func:`~scripts.training.run_or_resume`.
        data: name -> cases.
    """
    if rank() > 0:
        return
    path = Path(output_dir) / "run.json"
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_credentials(list(sys.argv)),
        **environment(torch.device(device)),
        "data": data_digest(data or {}),
    }
    starts: list[dict[str, Any]] = []
    if resume == "auto" and run_state.checkpoints() and path.is_file():
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"starts": [*starts, start], "config": running_config()}
    # Programs may override ids by objects, such as a torch.device.
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(json.dumps(content, indent=4, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
