"""Processes: carries out the runs of a comparison, each as the commands that a user would type, one per device."""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from .cases import named
from .collect import failed_cases
from .plan import Run

LAST_LINES = 15
SECONDS_TO_END = 10
# What a new training makes untrue, and an evaluation with other settings.
TABLES = ("metrics.csv", "metrics_summary.csv", "failures.csv")


class Processes:
    """Trains and evaluates runs in processes of their own.

    A run writes into its folder training.json and evaluation.json (the commands' --args_file) and run.log (what both
    printed). A run that was trained, or evaluated before, is only evaluated.

    Args:
        dataset_dir: folder of the data set's dataset.json.
        devices: one process at a time on each, such as ("cuda:0", "cuda:1"); None stands for what the configs choose.
        threads: CPU threads of a process; None leaves the number to torch.
    """

    def __init__(
        self, dataset_dir: str | Path, *, devices: Sequence[str | None] = (None,), threads: int | None = None
    ) -> None:
        self.dataset_dir = dataset_dir
        self.environment = dict(os.environ)
        if threads:
            self.environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        self.workers = len(devices)
        self._devices: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for device in devices:
            self._devices.put(device)
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def __call__(self, runs: Sequence[Run]) -> list[Run]:
        """Carries out ``runs`` and returns those that failed; one that lacks only some cases did not.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when no process is left.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {pool.submit(self._carry_out, run, f"[{i}/{len(runs)}]"): run for i, run in enumerate(runs, 1)}
            try:
                # In short waits, since a wait without an end cannot be interrupted on every system.
                pending = set(futures)
                while pending:
                    _, pending = wait(pending, timeout=1)
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        return [run for future, run in futures.items() if not future.result()]

    def command(self, run_id: str, arguments: Path) -> list[str]:
        """The arguments of Python for ``run_id``, "training" or "evaluation", whose settings are in a file."""
        return ["-m", "monai.bundle", "run", run_id, "--args_file", str(arguments)]

    def _stop(self) -> None:
        """Ends all processes and lets none begin."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()

    def _carry_out(self, run: Run, number: str) -> bool:
        """Trains and evaluates ``run``; whether it went well."""
        device, start = self._devices.get(), time.monotonic()
        earlier = _written_at(run)
        try:
            if self._stopping:
                return False
            print(f"{number} {run.name}{f' on {device}' if device else ''} ...", flush=True)
            status = self._train_and_evaluate(run, device)
        finally:
            self._devices.put(device)
        if self._stopping:
            return False
        log = run.folder / "run.log"
        # An evaluation that broke off before its first case leaves the tables of an earlier one.
        incomplete = failed_cases(run) if run.finished and _written_at(run) != earlier else {}
        if status != 0 and not incomplete:
            print(
                f"{number} {run.name} FAILED with exit status {status}; {log} ends with\n{last_lines(log)}", flush=True
            )
            return False
        without = f", without the cases that FAILED: {named(incomplete)}" if incomplete else ""
        print(f"{number} {run.name} finished in {time.monotonic() - start:.0f} s{without}", flush=True)
        return True

    def _train_and_evaluate(self, run: Run, device: str | None) -> int:
        run.folder.mkdir(parents=True, exist_ok=True)
        run_ids = ["evaluation"] if run.trained or run.finished else ["training", "evaluation"]
        if "training" in run_ids:
            _remove(run, ("record.json", *TABLES))
        elif run.changed_settings("evaluation", self.dataset_dir):
            _remove(run, TABLES)
        status = 0
        with (run.folder / "run.log").open("w" if "training" in run_ids else "a", encoding="utf-8") as log:
            for run_id in run_ids:
                arguments = run.folder / f"{run_id}.json"
                arguments.write_text(json.dumps(run.arguments(run_id, self.dataset_dir, device), indent=4) + "\n")
                status = self._process(self.command(run_id, arguments), log)
                if status != 0:
                    return status
        # The commands went well and left no result: a config that redirects its output.
        return status if run.finished else 1

    def _process(self, arguments: Sequence[str], log) -> int:
        """Runs a Python command with its output in ``log``, and returns its exit status."""
        print("$ " + shlex.join(["python", *arguments]), file=log, flush=True)
        with self._lock:
            if self._stopping:
                return 1
            process = subprocess.Popen(
                [sys.executable, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


def _remove(run: Run, names: Sequence[str]) -> None:
    for name in names:
        (run.folder / name).unlink(missing_ok=True)


def _written_at(run: Run) -> int | None:
    """When the last evaluation of a run ended; None if none did."""
    path = run.folder / "metrics_summary.csv"
    return path.stat().st_mtime_ns if path.is_file() else None


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """The last lines of a log, of a progress bar only its last state."""
    lines = [line.rstrip("\r").split("\r")[-1] for line in log.read_bytes().decode("utf-8", "replace").split("\n")]
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-count:])
