"""Run record: a handler that records time, memory and environment of a run when it is complete."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from scripts.files import write_text

from .handlers import rows_until

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel")


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process so far, MB; None if the system does not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


def device_name(device: torch.device) -> str:
    """The model name of ``device``, such as "NVIDIA H100" or "AMD EPYC 9R14"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, followed by "-dirty" if files differ; None without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """What a run depends on besides its config: processor, threads, versions, and the commit of this code."""
    return {
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "git_commit": git_commit(Path(__file__).parent),
    }


class RunRecord:
    """Writes ``<output_dir>/record.json`` when the training has finished all its iterations.

    It holds iterations; parameters (of the network, those that are trained); training_seconds (of the iterations and
    validations, not of loading and caching; of a continued run up to its checkpoint as in training_log.csv);
    peak_memory_mb (of the process, in the machine's memory); peak_gpu_memory_mb (allocated by torch, null without a
    GPU); and the :func:`environment`, with git_commit null without git. An old file is removed at the start, so that
    none means: not trained to the end.

    Args:
        output_dir: created if need be.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.path = Path(output_dir) / "record.json"

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Any) -> None:
        self.path.unlink(missing_ok=True)
        self.environment = environment(torch.device(engine.state.device))
        logged = rows_until(self.path.with_name("training_log.csv"), engine.state.iteration)
        self.started = time.monotonic() - (float(logged[-1]["seconds"]) if logged else 0)

    def _write(self, engine: Any) -> None:
        device = torch.device(engine.state.device)
        gpu = torch.cuda.max_memory_allocated(device) / 1024**2 if device.type == "cuda" else None
        record = {
            "iterations": engine.state.iteration,
            "parameters": sum(w.numel() for w in engine.network.parameters() if w.requires_grad),
            "training_seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mb": peak_memory_mb(),
            "peak_gpu_memory_mb": gpu and round(gpu, 1),
            **self.environment,
        }
        write_text(self.path, json.dumps(record, indent=4) + "\n")
