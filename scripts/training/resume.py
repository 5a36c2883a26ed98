"""Resume: saves everything that a run needs to continue, and continues a stopped run as if it had never stopped.

What is random in an iteration depends on the seed and the iteration alone (crops: scripts/data/stream.py; dropout and
noise: :class:`SeededIterations`), so no random state has to be saved.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from scripts.errors import UserError
from scripts.files import UNFINISHED, sha256
from scripts.lock import held
from scripts.ranks import any_rank, check_equal, rank, wait_for_all, world_size

from .checkpoints import flush_folder, save_atomically
from .description import RunDescription

logger = logging.getLogger(__name__)

KEPT = 2
RESUME_MODES = ("auto", "never")
# Distinguishes the random numbers of an iteration from those of the streams of crops (0 and 1).
ITERATION_STREAM = 2
NAME = re.compile(r"iteration_(\d+)\.([0-9a-f]{16})\.pt")


class SeededIterations:
    """Seeds torch at the start of every iteration from (seed, iteration), for dropout and the noise of teachers.

    Of several processes every one has random numbers of its own: its rank, from 1 on, is a third part of the seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        seed_iteration(self.seed, engine.state.iteration)


def seed_iteration(seed: int, iteration: int, *, process: int | None = None) -> None:
    """Seeds torch for an iteration, counted from 1, of a run with ``seed``, as in ``process`` (None: this one)."""
    number = rank() if process is None else process
    own = [number] if number else []  # the processes of a run drop other channels
    entropy = np.random.SeedSequence([seed, ITERATION_STREAM, iteration, *own])
    torch.manual_seed(int(entropy.generate_state(1)[0]))


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's sha256."""
    return sha256(path)[:16]


class RunState:
    """The complete state of a run, and its checkpoints ``<directory>/iteration_<n>.<sha256>.pt``.

    A checkpoint carries its own checksum in its name, is written atomically and loads with ``weights_only``. The last
    two are kept. Of several processes, which are all in the same state, the first one writes and all read.

    Args:
        directory: of the checkpoints.
        parts: name -> object with ``state_dict`` and ``load_state_dict``: network, objective (with its teacher or
            adversary), optimizer, learning rate scheduler.
        evaluator: the validation's engine, whose best metric decides what later validations overwrite.
        settings: config values by name that must not change between the start of a run and its continuation.
    """

    def __init__(
        self, directory: str | Path, parts: Mapping[str, Any], evaluator: Any, settings: Mapping[str, Any]
    ) -> None:
        self.directory = Path(directory)
        self.parts = dict(parts)
        self.evaluator = evaluator
        # With another number of processes the same batch size would mean another batch.
        self.settings = {**{name: _plain(value) for name, value in settings.items()}, "processes": world_size()}
        self.stop_requested = False

    def checkpoints(self) -> list[Path]:
        """The checkpoint files, latest first."""
        return [path for _, _, path in self._found()]

    def _found(self) -> list[tuple[int, str, Path]]:
        """Iteration, checksum and path of every checkpoint, latest first."""
        names = [(NAME.fullmatch(path.name), path) for path in self.directory.glob("iteration_*.pt")]
        return sorted([(int(name[1]), name[2], path) for name, path in names if name], reverse=True)

    def save(self, trainer: Any) -> None:
        """Writes a checkpoint and removes all but the last two. If the disk is full, only this checkpoint is lost."""
        if rank() > 0:
            return
        content = {
            "iteration": trainer.state.iteration,
            "settings": self.settings,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "scaler": trainer.scaler.state_dict() if trainer.scaler else None,
            "best_metric": self.evaluator.state.best_metric,
            "best_metric_epoch": self.evaluator.state.best_metric_epoch,
        }
        unnamed = self.directory / "iteration.pt"
        try:
            save_atomically(content, unnamed)
            unnamed.replace(self.directory / f"iteration_{trainer.state.iteration:08d}.{digest(unnamed)}.pt")
            flush_folder(self.directory)  # the new one is there for certain before an old one goes
        except OSError as error:
            logger.warning("no checkpoint at iteration %d: %s. Training goes on.", trainer.state.iteration, error)
            return
        for old in self.checkpoints()[KEPT:]:
            old.unlink()

    def clear(self) -> None:
        """Removes the checkpoints of a former run."""
        if rank() > 0:
            return
        for path in self.checkpoints():
            path.unlink()

    def remove_unfinished(self) -> None:
        """Removes incomplete files of a process that was killed while saving; they may be as large as a checkpoint."""
        if rank() > 0:
            return
        for path in (*self.directory.glob(f"{UNFINISHED}*"), self.directory / "iteration.pt"):
            path.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The latest intact checkpoint; None if there is none. A warning names each damaged one."""
        for _, checksum, path in self._found():
            if digest(path) == checksum:
                return torch.load(path, map_location="cpu", weights_only=True)
            logger.warning("checkpoint %s is damaged (its checksum differs) and is left out.", path)
        return None

    def restore(self, content: Mapping[str, Any], trainer: Any) -> None:
        """Restores every part and the trainer to their state when ``content`` was saved.

        Raises:
            ValueError: when a setting has changed since.
        """
        for name, now in self.settings.items():
            then = content["settings"].get(name)
            if then != now:
                raise UserError(
                    f"the run in {self.directory} was started with {name} = {then} and is now to continue with {now}. "
                    "Give the former value, choose another output_dir and ckpt_dir, or start anew with --resume never."
                )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        self.evaluator.state.best_metric = content["best_metric"]
        self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        trainer.state.iteration = content["iteration"]
        trainer.state.epoch = content["iteration"] // trainer.state.epoch_length
        if content["scaler"]:  # on the CPU a scaler is off and has no state
            # The trainer makes its scaler when it starts.
            trainer.add_event_handler(Events.STARTED, self._restore_scaler, trainer, content["scaler"])

    def _restore_scaler(self, trainer: Any, state: dict[str, Any]) -> None:
        if trainer.scaler is not None and trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(state)


def _plain(value: Any) -> Any:
    """Converts tuples to lists, so that a setting equals itself after it was saved and loaded."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class SaveRun:
    """Saves the run every ``interval`` iterations, at its end, and when it is asked to stop.

    Where the end of an epoch coincides, the checkpoint follows the validation, so that none is lost. Stand behind the
    handlers that write weights and validate.

    Args:
        run_state: what is saved.
        interval: iterations between two checkpoints; 0 saves one only when the run is asked to stop.
    """

    def __init__(self, run_state: RunState, interval: int) -> None:
        self.run_state = run_state
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._tidy)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_if_due)
        if self.interval:
            engine.add_event_handler(Events.COMPLETED, self.run_state.save)

    def _tidy(self, engine: Engine) -> None:
        self.run_state.remove_unfinished()
        if engine.state.iteration == 0:
            self.run_state.clear()

    def _within_epoch(self, engine: Any) -> None:
        if engine.state.iteration % engine.state.epoch_length:
            self._save_if_due(engine)

    def _save_if_due(self, engine: Any) -> None:
        iteration, planned = engine.state.iteration, engine.state.max_epochs * engine.state.epoch_length
        # The processes are told one by one and have to stop behind the same iteration.
        if any_rank(self.run_state.stop_requested):
            self.run_state.save(engine)
            wait_for_all()
            logger.warning("stopped at iteration %d as asked; the same command continues.", iteration)
            raise SystemExit(128 + signal.SIGTERM)
        if self.interval and iteration % self.interval == 0 and iteration < planned:
            self.run_state.save(engine)


def run_or_resume(
    trainer: Any,
    run_state: RunState,
    mode: str = "auto",
    *,
    description: RunDescription | None = None,
    folders: Sequence[str | Path] = (),
) -> None:
    """Runs the trainer from the latest checkpoint of its run if there is one, otherwise from the start.

    SIGTERM, by which schedulers stop jobs, makes it save a checkpoint after the iteration and end with status 143.

    Args:
        trainer: a :class:`~scripts.training.SemiSupervisedTrainer` with a :class:`SaveRun` handler.
        run_state: of the run.
        mode: "auto" continues what can be continued, "never" starts anew and removes the former checkpoints.
        description: of this start, written once it is certain that there is something to run.
        folders: that the run writes to, which no other training may do at the same time.

    Raises:
        UserError: when ``mode`` is unknown, the former run or another process has other settings, or another process
            trains in one of the ``folders``.
    """
    with held(*folders, purpose="training"):
        _run_or_resume(trainer, run_state, mode, description)


def _run_or_resume(trainer: Any, run_state: RunState, mode: str, description: RunDescription | None) -> None:
    if mode not in RESUME_MODES:
        raise UserError(f"resume is {mode!r}; it is one of {', '.join(RESUME_MODES)}.")
    content = run_state.latest() if mode == "auto" else None
    planned = trainer.state.max_epochs * trainer.state.epoch_length
    if content is not None:
        run_state.restore(content, trainer)
    check_equal({**run_state.settings, "iteration": trainer.state.iteration})
    if content is not None:
        finished = content["iteration"] >= planned
        done = (
            f"{planned} iterations were done before" if finished else f"iteration {content['iteration']} of {planned}"
        )
        if description is not None and not finished:
            description.warn_of_changes()
        if rank() == 0:
            print(f"{'finished:' if finished else 'resuming at'} {done}; to start from the beginning: --resume never")
        if finished:
            return
    if description is not None:
        description.write(continued=content is not None)

    def request_stop(*_: Any) -> None:
        run_state.stop_requested = True

    former = signal.signal(signal.SIGTERM, request_stop)
    try:
        trainer.run()
    finally:
        signal.signal(signal.SIGTERM, former)
