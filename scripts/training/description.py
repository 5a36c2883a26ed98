"""Description: writes what a run was asked to do and where it runs, when it starts."""

from __future__ import annotations

import inspect
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from scripts.ranks import rank

from .record import environment
from .resume import RunState


def running_config() -> dict[str, Any] | None:
    """The merged config, overrides included, of the bundle workflow that is calling; None outside of one.

    MONAI gives its config items no way to see the whole, so it is looked up among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return {name: value for name, value in workflow.parser.get().items() if name != "_meta_"}
        frame = frame.f_back
    return None


def describe_run(output_dir: str | Path, *, device: torch.device | str, run_state: RunState, resume: str) -> None:
    """Writes ``<output_dir>/run.json``: the starts of the run and its merged config.

    A start is the time (UTC), the command line and the :func:`~scripts.training.record.environment`. A run that
    continues adds its start to those before; the config is that of the last start. ``config`` holds what the files and
    overrides came to, with ``$`` and ``@`` unevaluated: it is itself a config file that repeats the run.

    Args:
        output_dir: created if need be.
        device: of the training.
        run_state: tells by its checkpoints whether the run continues.
        resume: "auto" or "never", see :func:`~scripts.training.run_or_resume`.
    """
    if rank() > 0:
        return
    path = Path(output_dir) / "run.json"
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        **environment(torch.device(device)),
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
