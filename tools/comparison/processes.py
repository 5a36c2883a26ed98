"""Processes: carries out the runs of a comparison, each as the commands that a user would type, one per device."""

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

from scripts.command import ROOT
from scripts.training.handlers import rows_of

from .cases import named
from .collect import failed_cases
from .planned_run import Run
from .progress import Progress, locked

COMMANDS = {"training": "train", "evaluation": "evaluate"}
LAST_LINES = 15
# A training that is asked to stop finishes its iteration and writes a checkpoint.
SECONDS_TO_END = 60
# What a new training makes untrue, and an evaluation with other settings.
TABLES = ("metrics.csv", "metrics_summary.csv", "failures.csv")


class Processes:
    """Trains and evaluates runs in processes of their own.

    A run writes into its folder training.json and evaluation.json (the commands' --args_file) and run.log (what both
    printed). A run that was trained, or evaluated before, is only evaluated. One that another process carries out, or
    has carried out since the call, is left to it. Every run that ends is one line on standard output.

    Args:
        dataset_dir: folder of the data set's dataset.json.
        devices: one process at a time on each, such as ("cuda:0", "cuda:1"); None stands for what the configs choose.
        threads: CPU threads of a process; None leaves the number to torch.
        verbose: lets the processes say into run.log all that they say, and says of every run that it begins.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        *,
        devices: Sequence[str | None] = (None,),
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.dataset_dir = dataset_dir
        self.verbose = verbose
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
        self.progress = Progress(runs)
        earlier = [_written_at(run) for run in runs]
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {
                pool.submit(self._carry_out, run, f"[{i}/{len(runs)}]", earlier[i - 1]): run
                for i, run in enumerate(runs, 1)
            }
            try:
                # In short waits, since a wait without an end cannot be interrupted on every system.
                pending = set(futures)
                while pending:
                    _, pending = wait(pending, timeout=1)
                    self.progress.show()
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        return [run for future, run in futures.items() if not future.result()]

    def command(self, run_id: str, arguments: Path) -> list[str]:
        """The arguments of Python for ``run_id``, "training" or "evaluation", whose settings are in a file."""
        words = [COMMANDS[run_id], "--args_file", str(arguments), *(("--verbose", "true") if self.verbose else ())]
        return [str(ROOT / "scripts"), *words]

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

    def _carry_out(self, run: Run, number: str, earlier: int | None) -> bool:
        """Trains and evaluates ``run``, whose last evaluation was written at ``earlier``; whether it went well."""
        device = self._devices.get()
        try:
            if self._stopping:
                return False
            with locked(run.folder) as lock:
                if lock is None or _written_at(run) != earlier:
                    self.progress.leave_out(run)
                    tense = "is being" if lock is None else "was"
                    self.progress.say(f"{number} {run.name} {tense} carried out by another process")
                    return True
                if self.verbose:
                    self.progress.say(f"{number} {run.name}{f' on {device}' if device else ''} ...")
                with self.progress.of(run):
                    return self._report(run, number, device, lock)
        finally:
            self._devices.put(device)

    def _report(self, run: Run, number: str, device: str | None, lock: int) -> bool:
        """Trains and evaluates ``run``, and says how that went."""
        start, earlier = time.monotonic(), _written_at(run)
        status = self._train_and_evaluate(run, device, lock)
        if self._stopping:
            return False
        log = run.folder / "run.log"
        # An evaluation that broke off before its first case leaves the tables of an earlier one.
        incomplete = failed_cases(run) if run.finished and _written_at(run) != earlier else {}
        if status != 0 and not incomplete:
            ending = last_lines(log)
            self.progress.say(f"{number} {run.name} FAILED with exit status {status}; {log} ends with\n{ending}")
            return False
        without = f", without the cases that FAILED: {named(incomplete)}" if incomplete else ""
        took = f"{time.monotonic() - start:.0f} s"
        self.progress.say(f"{number} {run.name}: {validation_dice(run)}{took}, in {run.folder}{without}")
        return True

    def _train_and_evaluate(self, run: Run, device: str | None, lock: int) -> int:
        run_ids = ["evaluation"] if run.trained or run.finished else ["training", "evaluation"]
        # The log of a training that goes on stands below that of its beginning.
        mode = "w" if "training" in run_ids and not run.begun else "a"
        if "training" in run_ids:
            _remove(run, ("record.json", *TABLES))
        elif run.changed_settings("evaluation", self.dataset_dir):
            _remove(run, TABLES)
        status = 0
        with (run.folder / "run.log").open(mode, encoding="utf-8") as log:
            for run_id in run_ids:
                arguments = run.folder / f"{run_id}.json"
                content = json.dumps(run.arguments(run_id, self.dataset_dir, device), indent=4) + "\n"
                arguments.write_text(content, encoding="utf-8")
                status = self._process(self.command(run_id, arguments), log, lock)
                if status != 0:
                    return status
        # The commands went well and left no result: a config that redirects its output.
        return status if run.finished else 1

    def _process(self, arguments: Sequence[str], log, lock: int) -> int:
        """Runs a Python command with its output in ``log``, and returns its exit status.

        The command holds the lock, too: should this process be killed, no other begins the run beside it.
        """
        print("$ " + shlex.join(["python", *arguments]), file=log, flush=True)
        with self._lock:
            if self._stopping:
                return 1
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                pass_fds=[lock] if lock >= 0 else [],
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


def validation_dice(run: Run) -> str:
    """Such as "validation Dice 0.812, ", of the last validation; empty without one."""
    rows = rows_of(run.folder / "validation_log.csv")
    return f"validation Dice {float(rows[-1]['val_mean_dice']):.3f}, " if rows else ""


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """The last lines of a log, of a progress bar only its last state."""
    lines = [line.rstrip("\r").split("\r")[-1] for line in log.read_bytes().decode("utf-8", "replace").split("\n")]
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-count:])
