"""Resume: saves everything that a run needs to continue, and continues a stopped run as if it had never stopped.

What is random in an iteration depends on the seed and the iteration alone (crops: scripts/data/stream.py; dropout and
noise: :class:`SeededIterations`), so no random state has to be saved.
"""

import json
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
from scripts.files import UNFINISHED
from scripts.lock import held
from scripts.ranks import any_rank, check_equal, rank, wait_for_all, world_size

from .checkpoints import load_if_whole, save_atomically
from .description import RunDescription, differences

logger = logging.getLogger(__name__)

KEPT, SHOWN = 2, 3
RESUME_MODES = ("auto", "never")
# Distinguishes the random numbers of an iteration from those of the streams of crops (0 and 1).
ITERATION_STREAM = 2
NAME = re.compile(r"checkpoint_iteration_(\d+)\.pt")


class SeededIterations:
    """Seeds torch at the start of every iteration from (seed, iteration), for dropout and the noise of teachers.

    Of several processes every one has random numbers of its own: its rank, from 1 on, is a third part of the seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        own = [rank()] if rank() else []
        entropy = np.random.SeedSequence([self.seed, ITERATION_STREAM, engine.state.iteration, *own])
        torch.manual_seed(int(entropy.generate_state(1)[0]))


class RunState:
    """The complete state of a run, and its checkpoints ``<directory>/checkpoint_iteration_<n>.pt``.

    A checkpoint ends with its own checksum, is written atomically and loads with ``weights_only``. The last two are
    kept. Of several processes, which are all in the same state, the first one writes and all read.

    Args:
        directory: of the checkpoints.
        parts: name -> object with ``state_dict`` and ``load_state_dict``: network, objective (with its teacher or
            adversary), optimizer, learning rate scheduler.
        evaluator: the validation's engine, whose best metric decides what later validations overwrite.
        settings: config values by id that must not change between the start of a run and its continuation, see
            :func:`~scripts.settings.fixed_settings`.
    """

    def __init__(
        self, directory: str | Path, parts: Mapping[str, Any], evaluator: Any, settings: Mapping[str, Any]
    ) -> None:
        self.directory = Path(directory)
        self.parts = dict(parts)
        self.evaluator = evaluator
        # With another number of processes the same batch size would mean another batch. As JSON has them: no tuples,
        # and nothing that a checkpoint would not load.
        self.settings = json.loads(json.dumps({"processes": world_size(), **settings}, default=str))
        self.stop_requested = 0  # the signal

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Iteration and path of every checkpoint, latest first."""
        names = [(NAME.fullmatch(path.name), path) for path in self.directory.glob("*")]
        return sorted(((int(name[1]), path) for name, path in names if name), key=lambda found: (-found[0], found[1]))

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
        path = self.directory / f"checkpoint_iteration_{trainer.state.iteration}.pt"
        try:
            save_atomically(content, path, checksum=True)  # is on the disk before an old one goes
        except OSError as error:
            logger.warning("no checkpoint at iteration %d: %s. Training goes on.", trainer.state.iteration, error)
            return
        for _, old in self.checkpoints()[KEPT:]:
            old.unlink()

    def tidy(self, *, anew: bool) -> None:
        """Removes what a process left that was killed while it saved; of a run that starts anew, all checkpoints."""
        if rank() > 0:
            return
        former = [path for _, path in self.checkpoints()] if anew else []
        for path in (*former, *self.directory.glob(f"{UNFINISHED}*")):
            path.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The latest checkpoint that is whole; None when there is none. A damaged one is named in a warning."""
        for _, path in self.checkpoints():
            if (content := load_if_whole(path)) is not None:
                return content
            logger.warning("checkpoint %s is damaged (its checksum differs) and is left out.", path)
        return None

    def restore(self, content: Mapping[str, Any], trainer: Any) -> None:
        """Restores every part and the trainer to their state when ``content`` was saved.

        Raises:
            UserError: when a setting has changed since.
        """
        then = content["settings"]  # another version of the bundle may have had fewer
        before, now = ({n: of[n] for n in self.settings if n in then} for of in (then, self.settings))
        if changes := differences(before, now):
            changes.sort(key=lambda change: "_target_" not in change)  # another method explains the others
            more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            raise UserError(
                f"the run in {self.directory} cannot continue with other settings: {'; '.join(changes[:SHOWN])}{more}. "
                "Give the former values, choose another output_dir and ckpt_dir (--initial_weights starts from these "
                "weights), or start from the beginning with --resume never."
            )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        self.evaluator.state.best_metric = content["best_metric"]
        self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        trainer.state.iteration = content["iteration"]
        trainer.state.epoch = content["iteration"] // trainer.state.epoch_length

        def restore_scaler() -> None:
            if trainer.scaler is not None and trainer.scaler.is_enabled():
                trainer.scaler.load_state_dict(content["scaler"])

        if content["scaler"]:  # on the CPU a scaler is off and has no state
            # The trainer makes its scaler when it starts.
            trainer.add_event_handler(Events.STARTED, restore_scaler)


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
        self.run_state.tidy(anew=engine.state.iteration == 0)

    def _within_epoch(self, engine: Any) -> None:
        if engine.state.iteration % engine.state.epoch_length:
            self._save_if_due(engine)

    def _save_if_due(self, engine: Any) -> None:
        iteration, planned = engine.state.iteration, engine.state.max_epochs * engine.state.epoch_length
        # The processes are told one by one and have to stop behind the same iteration.
        if any_rank(bool(self.run_state.stop_requested)):
            self.run_state.save(engine)
            wait_for_all()
            logger.warning("stopped at iteration %d as asked; the same command continues.", iteration)
            raise SystemExit(128 + (self.run_state.stop_requested or signal.SIGTERM))
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

    SIGTERM, by which schedulers stop jobs, and Ctrl-C make it save a checkpoint after the iteration and end with
    status 143 or 130. A second Ctrl-C stops at once.

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
    if mode not in RESUME_MODES:
        raise UserError(f"resume is {mode!r}; it is one of {', '.join(RESUME_MODES)}.")

    def request_stop(number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if run_state.stop_requested:
                raise KeyboardInterrupt
            print("\nstopping after this iteration, with a checkpoint; Ctrl-C again stops at once", flush=True)
        run_state.stop_requested = number

    with held(*folders, purpose="training"):
        if not _prepare(trainer, run_state, mode, description):
            return
        heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
        former = {number: signal.signal(number, request_stop) for number in heard}
        try:
            trainer.run()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def _prepare(trainer: Any, run_state: RunState, mode: str, description: RunDescription | None) -> bool:
    """Restores and describes the run; whether there is anything left of it to do."""
    content = run_state.latest() if mode == "auto" else None
    if content is not None:
        run_state.restore(content, trainer)
    check_equal({**run_state.settings, "iteration": trainer.state.iteration})
    done, planned = trainer.state.iteration, trainer.state.max_epochs * trainer.state.epoch_length
    finished = content is not None and done >= planned
    if content is not None and rank() == 0:
        said = (
            f"finished: {planned} iterations were done before"
            if finished
            else f"resuming at iteration {done} of {planned}"
        )
        print(f"{said}; to start from the beginning: --resume never")
    if description is not None and not finished:
        if content is not None:
            description.warn_of_changes()
        description.write(continued=content is not None)
    return not finished
