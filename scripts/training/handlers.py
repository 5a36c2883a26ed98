"""Handlers: the progress bar, the log of every loss term, its gradient norm."""

import csv
import logging
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from scripts.ranks import average

logger = logging.getLogger(__name__)

# Seconds between two lines of a progress that no terminal shows.
SECONDS_BETWEEN = 30


class ProgressBar:
    """The progress of a whole run: time left, loss of a recent iteration, last and best validation.

    On a terminal a bar, with what is logged meanwhile above it; elsewhere a line of the log every 30 seconds.

    Args:
        evaluator: the validation's engine, whose key metric is shown; None shows none.
    """

    def __init__(self, evaluator: Any = None) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: Engine) -> None:
        total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        self.terminal = sys.stderr.isatty()
        self.opened = ExitStack()
        if self.terminal:
            self.opened.enter_context(logging_redirect_tqdm())
        file = sys.stderr if self.terminal else self.opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
        self.bar = tqdm(
            total=total, initial=engine.state.iteration, unit="it", mininterval=1.0, dynamic_ncols=True, file=file
        )
        self.logged = time.monotonic()

    def _advance(self, engine: Engine) -> None:
        # Reading the loss waits for the device, so it is not done in every iteration.
        if engine.state.iteration % 10 == 0 and hasattr(engine.state, "loss"):
            shown = {"loss": f"{engine.state.loss.total.item():.3f}", **self._validation()}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if not self.terminal and (time.monotonic() - self.logged >= SECONDS_BETWEEN or self.bar.n == self.bar.total):
            self.logged = time.monotonic()
            progress = self.bar.format_dict | {
                "ncols": None,
                "bar_format": "{n_fmt} of {total_fmt}, {remaining} left{postfix}",
            }
            logger.info("%s", self.bar.format_meter(**progress))

    def _validation(self) -> dict[str, str]:
        validated = getattr(self.evaluator, "state", None)
        if validated is None or not validated.metrics:
            return {}
        name = validated.key_metric_name
        value = f"{validated.metrics[name]:.3f} (best {validated.best_metric:.3f})"
        return {name.replace("val_mean_", "validation "): value}

    def _close(self, engine: Engine, error: BaseException | None = None) -> None:
        if hasattr(self, "bar"):  # a handler that starts before this one may have failed
            self.bar.close()
            self.opened.close()
        if error is not None:
            raise error


class GradientNorms:
    """Norm of each term's gradient with respect to the network's weights, unweighted, every ``interval`` iterations.

    They are left in ``engine.state.gradient_norms`` (term -> float), where :class:`TermsLog` finds them. A pass costs
    about one backward pass per term. With a gradient scaler the terms are scaled, too, and the norms scaled back:
    float16 would make zeros of most of a mean's gradient.

    Args:
        interval: iterations between two passes; 0 never measures.
    """

    def __init__(self, interval: int = 0) -> None:
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        if self.interval:
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._measure)

    def _measure(self, engine: Any) -> None:
        engine.state.gradient_norms = {}
        if (engine.state.iteration - 1) % self.interval:
            return
        weights = [w for w in engine.network.parameters() if w.requires_grad]
        scale = engine.scaler.get_scale() if engine.scaler is not None and engine.scaler.is_enabled() else 1.0
        for name, value in engine.state.loss.terms.items():
            if value.requires_grad:
                grads = torch.autograd.grad(scale * value, weights, retain_graph=True, allow_unused=True)
                average(g for g in grads if g is not None)
                norms = [g.float().norm() for g in grads if g is not None]
                engine.state.gradient_norms[name] = torch.stack(norms).norm().item() / scale if norms else 0.0


class TermsLog:
    """Writes ``<output_dir>/training_log.csv``: loss, learning rate, seconds, each term, weight and gradient norm.

    Columns: iteration, seconds (since the start), learning_rate, loss, gradient_norm (of the weighted sum, as
    :class:`~scripts.training.FiniteLoss` finds it), then for every term of the objective ``<term>``,
    ``<term>_weight`` and, if they are measured, ``<term>_gradient_norm``, and then what the objective measures besides,
    such as unanimous_share. A term that is off is empty.

    Args:
        output_dir: created if need be.
        interval: iterations between two rows.
    """

    def __init__(self, output_dir: str | Path, interval: int = 10) -> None:
        self.path = Path(output_dir) / "training_log.csv"
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _start(self, engine: Any) -> None:
        self.started = time.monotonic()
        columns = ["iteration", "seconds", "learning_rate", "loss", "gradient_norm"]
        for term in engine.objective.TERMS:
            columns += [term, f"{term}_weight", f"{term}_gradient_norm"]
        self.columns = [*columns, *engine.objective.MEASURES]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = rows_until(self.path, engine.state.iteration)
        if kept:
            self.started -= float(kept[-1]["seconds"])
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def _write(self, engine: Any) -> None:
        if (engine.state.iteration - 1) % self.interval:
            return
        loss = engine.state.loss
        row: dict[str, Any] = {
            "iteration": engine.state.iteration,
            "seconds": round(time.monotonic() - self.started, 2),
            "learning_rate": engine.optimizer.param_groups[0]["lr"],
            "loss": loss.total.item(),
        }
        if hasattr(engine.state, "gradient_norm"):
            row["gradient_norm"] = engine.state.gradient_norm.item()
        row |= {name: value.item() for name, value in (loss.terms | loss.measures).items()}
        row |= {f"{term}_weight": weight for term, weight in loss.weights.items()}
        row |= {f"{term}_gradient_norm": norm for term, norm in getattr(engine.state, "gradient_norms", {}).items()}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without a last one that was cut off, as by a full disk; none if the file is missing."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def rows_until(path: Path, iteration: int) -> list[dict[str, str]]:
    """What a run that is continued at ``iteration`` has logged in ``path``; its later rows will be written again."""
    return [row for row in rows_of(path) if int(row["iteration"]) <= iteration] if iteration else []
