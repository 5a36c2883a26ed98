"""Guards: detect a non-finite loss and a collapsed segmentation, explain them, and stop the training or warn."""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.errors import UserError
from scripts.ranks import any_rank, gathered, rank

from .trainer import SkipBatch

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
# Skipping ends here: weights that are spoilt make every loss what it is.
MOST_SKIPPED = 10
# A gradient scaler halves its scale with every step that it drops, and half precision spans 40 powers of two.
MOST_DROPPED = 40
REMEDY = (
    "Remedies: lower learning_rate, set amp to false, or look at the crops; "
    "--non_finite_loss skip leaves such batches out."
)
COLLAPSE = (
    "the segmentation of %s has been %s in all %d cases of the last %d validations: the training has probably "
    "collapsed. Look at training_log.csv and at pictures (--picture_interval); a lower learning_rate may "
    "help, and foreground_crops above 0 for small objects."
)


class NotFiniteError(UserError):
    """The loss or gradient of a training step is NaN or infinite."""


class FiniteLoss:
    """Prevents a step with a non-finite loss or gradient from changing the weights.

    Checked after the backward pass and before the optimiser's step: the loss and the norm of the gradient, left in
    ``engine.state.gradient_norm``. A gradient scaler (``amp`` in float16) drops steps whose gradient is not finite by
    itself, as a part of finding its scale: there the gradient counts only after 40 in succession. A skipped step
    changes neither weights nor optimiser nor the running averages of BatchNorm, and counts as an iteration.

    Args:
        policy: "stop" ends the run; "skip" leaves the batch out, and stops after 10 in succession.

    Raises:
        UserError: when ``policy`` is neither.
        NotFiniteError: from the run, naming the terms, the iteration and the files of the crops.
    """

    def __init__(self, policy: str = "stop") -> None:
        if policy not in POLICIES:
            raise UserError(f"non_finite_loss is {policy!r}; it is one of {', '.join(POLICIES)}.")
        self.policy = policy
        self.skipped = 0
        self.in_succession = 0
        self.dropped_in_succession = 0
        self.buffers: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        if self.policy == "skip":
            engine.add_event_handler(Events.ITERATION_STARTED, self._remember_buffers)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check)

    def _remember_buffers(self, engine: Any) -> None:
        self.buffers = [buffer.clone() for buffer in _buffers(engine)]

    def _check(self, engine: Any) -> None:
        scaler = engine.scaler if engine.scaler is not None and engine.scaler.is_enabled() else None
        # The optimizer's list: to collect the weights from the modules takes milliseconds.
        weights = chain.from_iterable(group["params"] for group in engine.optimizer.param_groups)
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None]).float()
        engine.state.gradient_norm = norm if scaler is None else norm / scaler.get_scale()
        # One question to the device for both of them.
        finite_loss, finite_norm = torch.stack([engine.state.loss.total.detach().float(), norm]).isfinite().tolist()
        if getattr(engine, "accumulation_steps", 1) > 1:  # each process has its own gradient until the last of them
            finite_norm = not any_rank(not finite_norm)
        self.dropped_in_succession = 0 if finite_norm else self.dropped_in_succession + 1
        left_to_scaler = scaler is not None and self.dropped_in_succession <= MOST_DROPPED
        if finite_loss and (finite_norm or left_to_scaler):
            self.in_succession = 0
            return
        what = _describe(engine)
        self.in_succession += 1
        if self.policy == "stop" or self.in_succession > MOST_SKIPPED:
            before = f" after {MOST_SKIPPED} skipped in succession" if self.policy == "skip" else ""
            if finite_loss and scaler is not None:
                before += f", and in the {MOST_DROPPED} steps before, which the gradient scaler dropped"
            raise NotFiniteError(f"{what}{before}. {_cause(engine)}{REMEDY}")
        self.skipped += 1
        logger.warning("%s: the batch is skipped (%d so far).", what, self.skipped)
        with torch.no_grad():
            for buffer, before_step in zip(_buffers(engine), self.buffers, strict=True):
                buffer.copy_(before_step)
        engine.optimizer.zero_grad(set_to_none=True)
        raise SkipBatch


def _describe(engine: Any) -> str:
    loss = engine.state.loss
    terms = [f"{name} = {value.item()}" for name, value in loss.terms.items() if not value.isfinite()]
    if terms:
        what = f"the loss is not finite: {', '.join(terms)}"
    elif not loss.total.isfinite():
        what = f"the loss is not finite: its weighted sum is {loss.total.item()}"
    else:
        names = [n for n, w in engine.network.named_parameters() if w.grad is not None and not w.grad.isfinite().all()]
        where = f"in {len(names)} weights, first {names[0]}" if names else "its norm overflows"
        what = f"the gradient is not finite ({where}) although the loss is {loss.total.item()}"
    files = "; ".join(f"{stream}: {', '.join(names)}" for stream, names in engine.state.files.items())
    return f"{what}, at iteration {engine.state.iteration}, with crops of {files or 'unknown files'}"


def _cause(engine: Any) -> str:
    if not all(weight.isfinite().all() for weight in engine.network.parameters()):
        return "The weights are not finite either: they were before this iteration. "
    if not engine.state.output["image"].isfinite().all():
        return "The image of the crops is not finite. "
    return ""


def _buffers(engine: Any) -> list[torch.Tensor]:
    return [*engine.network.buffers(), *engine.objective.buffers()]


class CollapseWarning:
    """Warns when the segmentation of a class is empty, or full, in every case of several validations.

    Attach it to the evaluator of the validation, in every process, behind a postprocessing that leaves "pred" and
    "label" as foreground channels (C, H, W, D) of a case. Being empty counts only if a case has the class, being full
    if one lacks it somewhere.

    Args:
        class_names: of the channels; None to number them from 1.
        validations: in succession, from which on every one warns.
    """

    def __init__(self, class_names: Sequence[str] | None = None, *, validations: int = 3) -> None:
        self.class_names = class_names
        self.validations = validations
        self.in_succession: dict[tuple[str, str], int] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._conclude)

    def _start(self, engine: Engine) -> None:
        self.fractions: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _look(self, engine: Any) -> None:
        for case in engine.state.output:
            pred, label = (torch.as_tensor(case[key]).flatten(1).float().mean(1).cpu() for key in ("pred", "label"))
            self.fractions.append((pred, label))

    def _conclude(self, engine: Engine) -> None:
        fractions = list(chain.from_iterable(gathered(self.fractions)))
        if not fractions or rank():
            return
        pred, label = (torch.stack(values) for values in zip(*fractions))  # (cases, C)
        found = {"empty": (pred == 0).all(0) & (label > 0).any(0), "full": (pred == 1).all(0) & (label < 1).any(0)}
        for channel in range(pred.shape[1]):
            name = self.class_names[channel] if self.class_names else f"class {channel + 1}"
            for state, collapsed in found.items():
                count = self.in_succession.get((name, state), 0) + 1 if collapsed[channel] else 0
                self.in_succession[name, state] = count
                if count >= self.validations:
                    logger.warning(COLLAPSE, name, state, len(pred), count)
