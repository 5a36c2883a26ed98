"""Trainer: each step joins a batch of labeled and one of unlabeled crops and minimises an objective over both."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, EventEnum, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils.enums import CommonKeys as Keys
from torch.nn.parallel import DistributedDataParallel

from scripts.allocation import keep_freed_memory
from scripts.data.stream import FILE, DrawBatches
from scripts.distance import ExactDistance
from scripts.errors import UserError
from scripts.methods import Loss, Objective
from scripts.networks.normalization import StreamBatchNorm3d
from scripts.ranks import average, replica, world_size

from .graphs import GraphedForward
from .resources import advise_on_resources


class SkipBatch(Exception):  # noqa: N818
    """Raised in an event handler, it ends the iteration but not the run."""


class RunEvents(EventEnum):
    """``ENDED``: fired when ``run`` exits for any reason; ``engine.state.error`` has the error, if any."""

    ENDED = "ended"


class _Step(torch.nn.Module):
    """Forward pass and loss in one module, for DistributedDataParallel.

    It finds the weights that the loss leaves out by going back from what ``forward`` returns, which is therefore the
    weighted sum alone. The heads, of which a method may ignore some, and the terms are left here.
    """

    def __init__(self, network: torch.nn.Module, objective: Objective, inferer: Inferer) -> None:
        super().__init__()
        self.network, self.objective, self.inferer = network, objective, inferer
        self.own_pass = type(objective).predict is not Objective.predict
        if self.own_pass and isinstance(inferer, GraphedForward):
            raise UserError(
                f"{type(objective).__name__} runs encoder and decoder apart, which configs/budgets/cuda_graphs.json "
                "cannot record: leave that file out."
            )
        self.streams = [module for module in network.modules() if isinstance(module, StreamBatchNorm3d)]
        # Where there is no weight without use, DistributedDataParallel warns in every process that there is none.
        self.unused = torch.nn.Parameter(torch.zeros((), device=next(network.parameters()).device))

    def forward(self, image: torch.Tensor, targets: dict[str, torch.Tensor], iteration: int) -> torch.Tensor:
        for layer in self.streams:
            layer.labeled = len(targets["label"])
        heads = self.heads_of(image)
        self.heads: dict[str, torch.Tensor] | None = heads
        self.loss: Loss | None = self.objective(heads, targets, iteration)
        return self.loss.total

    def heads_of(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.objective.predict(self.network, image) if self.own_pass else self.inferer(image, self.network)


class SemiSupervisedTrainer(SupervisedTrainer):
    """MONAI's supervised trainer with a second stream and an objective that depends on the iteration.

    With ``pseudo_data_loader`` crops with pseudo-labels that were made beforehand stand behind the labeled ones, and
    every labeled crop has a "label_weight": 1, or ``pseudo_weight``.

    The labeled batch comes from ``train_data_loader``, the unlabeled one from ``unlabeled_data_loader``. The objective
    makes of both what the network sees (:meth:`~scripts.methods.Objective.views`; by default the images one after
    the other, labeled first), which goes through the network together. Gradient accumulation and the iteration events
    are those of MONAI's trainer.

    After an iteration ``engine.state.output`` is, as after MONAI's decollation, a list of dictionaries, here of a
    single one with "image" (B, channels, H, W, D), "label" (the targets), "pred" (the heads by name) and "loss", so
    that ``from_engine(["loss"], first=True)`` of experiment tracking finds the loss. ``engine.state.loss`` is the whole
    :class:`~scripts.methods.Loss`, whose terms still carry their graph when ``IterationEvents.LOSS_COMPLETED``
    fires, and ``engine.state.files`` names the image files of the crops by their stream, "labeled" and "unlabeled".
    When ``run`` is left ``RunEvents.ENDED`` fires, also after an error.

    In a run of several processes (torchrun) each trains on its share of the batch, by DistributedDataParallel.

    Args:
        unlabeled_data_loader: endless loader of batches with an "image"; None to train on the labeled crops alone.
        objective: what is minimised.
        pseudo_data_loader: endless loader of batches with "image" and "label"; None for true labels alone.
        pseudo_weight: what a pseudo-label counts beside a true label's 1.
        true_label_iterations: the last so many iterations are without the crops of ``pseudo_data_loader``.
        amp: whether to use mixed precision, on any device; MONAI's scaler of the gradients joins in for float16.
        amp_kwargs: arguments of ``torch.autocast``, see :func:`scripts.precision.amp_options`.
        compile: True to compile network and objective by torch.compile; or the name of one of its backends.
        kwargs: as in ``monai.engines.SupervisedTrainer``, except for ``loss_function`` and ``prepare_batch``.

    Raises:
        UserError: when there is no labeled crop, ``pseudo_weight`` or ``true_label_iterations`` is out of range, or
            ``compile`` no backend.
    """

    def __init__(
        self,
        *,
        unlabeled_data_loader: Iterable[dict] | None = None,
        objective: Objective,
        pseudo_data_loader: Iterable[dict] | None = None,
        pseudo_weight: float = 0.5,
        true_label_iterations: int = 0,
        compile: bool | str = False,  # noqa: A002  # MONAI's name
        amp: bool = False,
        amp_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("train_data_loader") is None:
            raise UserError("there is no labeled crop to train on: labeled_batch_size must be at least 1.")
        if not 0 < pseudo_weight <= 1:
            raise UserError(f"pseudo_weight is {pseudo_weight}; it is above 0 and at most 1, a true label's weight.")
        # The heads are a dictionary of whole-batch tensors, for which there is nothing to decollate.
        kwargs.setdefault("decollate", False)
        kwargs["event_names"] = [*(kwargs.get("event_names") or []), RunEvents]
        options = amp_kwargs or {}
        scaled = amp and options.get("dtype") is not torch.bfloat16  # with its range, gradients need no scaler
        super().__init__(loss_function=self._loss, prepare_batch=self._views, amp=scaled, amp_kwargs=options, **kwargs)
        self.mixed_precision = amp
        self._autocast = partial(torch.autocast, self.state.device.type, enabled=amp, **options)
        self.objective = objective.to(self.state.device)
        self._step = _Step(self.network, self.objective, self.inferer)
        if compile is not False:
            self._compile("inductor" if compile is True else compile)
        self._replica = replica(self._step)
        self.inferer = self._forward  # type: ignore[assignment]  # MONAI only calls it
        self.unlabeled_data_loader = unlabeled_data_loader
        self.pseudo_data_loader = pseudo_data_loader
        self.pseudo_weight = pseudo_weight
        self.true_label_iterations = true_label_iterations
        planned = self.state.max_epochs * self.state.epoch_length
        if pseudo_data_loader is not None and not 0 <= true_label_iterations < planned:
            raise UserError(
                f"true_label_iterations is {true_label_iterations} of {planned} iterations; it is 0 or more, and fewer "
                "than all, since pseudo_batch_size asks for pseudo-labels."
            )
        self._further: dict[str, Iterator[dict]] = {}
        self.add_event_handler(Events.STARTED, self._continue_streams)
        # The last event within an iteration, so that whatever listens to its end finds the method's state complete.
        self.add_event_handler(IterationEvents.MODEL_COMPLETED, self._after_step)
        self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._average_buffers)

    def run(self) -> None:  # type: ignore[override]  # MONAI narrows it so
        """As in MONAI's trainer; errors of memory or data workers get a note with advice."""
        self.state.error = None
        if self.state.device.type == "cpu":
            keep_freed_memory()
        try:
            super().run()
        except BaseException as error:
            self.state.error = error
            if isinstance(error, Exception):
                advise_on_resources(self, error)
            raise
        finally:
            self.fire_event(RunEvents.ENDED)

    def _iteration(self, engine: Any, batchdata: dict[str, torch.Tensor]) -> Any:
        try:
            output = super()._iteration(engine, batchdata)
        except SkipBatch:
            output = engine.state.output
        return [output]

    def _continue_streams(self, engine: Engine) -> None:
        """Makes the crops of a second ``run`` continue those of the first instead of repeating them."""
        for loader in (self.data_loader, *self._further_loaders().values()):
            batches = getattr(loader, "batch_sampler", None)
            if isinstance(batches, DrawBatches):
                batches.start = engine.state.iteration
        # Here and not when the first batch is needed: making an iterator draws from torch's random numbers, which by
        # then have been seeded for the iteration.
        self._further = {name: iter(loader) for name, loader in self._further_loaders().items()}

    def _further_loaders(self) -> dict[str, Iterable[dict]]:
        """The loaders besides the labeled one, by the name of their stream."""
        loaders = {"pseudo_labeled": self.pseudo_data_loader, "unlabeled": self.unlabeled_data_loader}
        return {name: loader for name, loader in loaders.items() if loader is not None}

    def _compile(self, backend: str) -> None:
        """Compiles the forward pass and the terms; not the exact maps, whose loops end when their values say so."""
        if backend not in torch.compiler.list_backends(exclude_tags=()):
            known = ", ".join(torch.compiler.list_backends())
            raise UserError(f"compile is {backend!r}; it is true, false or a backend of torch.compile: {known}.")
        if isinstance(self._step.inferer, GraphedForward):
            raise UserError("compile is on with configs/budgets/cuda_graphs.json: choose one of them.")
        for module in self.objective.modules():
            if isinstance(module, ExactDistance):
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        # Not the weighted sum: its weights are new numbers in every iteration, each of which would be compiled anew.
        self._step.heads_of = torch.compile(self._step.heads_of, backend=backend)  # type: ignore[method-assign]
        self.objective.terms = torch.compile(self.objective.terms, backend=backend)  # type: ignore[method-assign]

    def _views(
        self, batchdata: dict[str, Any], device: torch.device, non_blocking: bool, **to_kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The views (N, ...) that the objective makes from both streams, and all targets, on the device.

        ``to_kwargs`` are for the views: the memory format that the network wants.
        """

        def moved(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            tensors = {str(key): value for key, value in batch.items() if isinstance(value, torch.Tensor)}
            # A MONAI tensor without its metadata, which every operation would otherwise maintain.
            plain = {key: value.as_subclass(torch.Tensor) for key, value in tensors.items()}
            return {key: value.to(device=device, non_blocking=non_blocking) for key, value in plain.items()}

        drawn = {"labeled": batchdata}
        last = self.state.max_epochs * self.state.epoch_length - self.true_label_iterations
        for name, loader in self._further_loaders().items():
            if name != "pseudo_labeled" or self.state.iteration <= last:
                if name not in self._further:
                    self._further[name] = iter(loader)
                drawn[name] = next(self._further[name])
        self.state.files = {name: list(batch.get(FILE, ())) for name, batch in drawn.items()}
        labeled, pseudo, unlabeled = (moved(drawn.get(name, {})) for name in ("labeled", "pseudo_labeled", "unlabeled"))
        unlabeled = unlabeled or {Keys.IMAGE.value: labeled[Keys.IMAGE][:0]}
        if pseudo:
            labeled = self._with_weights(labeled, pseudo)
        with self._autocast():
            targets = self.objective.views(labeled, unlabeled, self.state.iteration - 1)
        image = targets[Keys.IMAGE].to(device=device, **to_kwargs)
        return image, {**targets, Keys.IMAGE.value: image}

    def _with_weights(
        self, labeled: dict[str, torch.Tensor], pseudo: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The labeled crops, followed by those with pseudo-labels, and the weight of each crop's label."""
        joined = {key: torch.cat([value, pseudo[key]]) for key, value in labeled.items()}
        weight = joined[Keys.IMAGE].new_ones(len(joined[Keys.IMAGE]), 1, 1, 1, 1)
        weight[len(labeled[Keys.IMAGE]) :] = self.pseudo_weight
        return {**joined, "label_weight": weight}

    def _average_buffers(self, engine: Engine) -> None:
        """Running statistics: DistributedDataParallel would take those of rank 0, which saw a part of the batch."""
        if world_size() > 1:
            average(buffer for buffer in self.network.buffers() if buffer.is_floating_point())

    def _after_step(self, engine: Engine) -> None:
        if self.optimiser_steps():
            self.objective.after_step(engine.state.iteration - 1)

    def optimiser_steps(self) -> bool:
        """Whether the weights change in this iteration; with MONAI's ``accumulation_steps`` not in every one."""
        number = getattr(self, "accumulation_steps", 1)  # MONAI 1.5 has none
        behind = (self.state.iteration - 1) % self.state.epoch_length + 1
        return behind % number == 0 or behind == self.state.epoch_length

    def _forward(self, image: torch.Tensor, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        keeps_gradients: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(self._replica, DistributedDataParallel) and not self.optimiser_steps():
            keeps_gradients = self._replica.no_sync()
        with keeps_gradients, self._autocast():
            total = self._replica(image, self.state.output[Keys.LABEL], self.state.iteration - 1)
        heads, loss, self._step.heads, self._step.loss = self._step.heads, self._step.loss, None, None
        assert heads is not None and loss is not None
        self.state.loss = loss._replace(total=total)
        return heads

    def _loss(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.state.loss.total


def trainable_parameters(network: torch.nn.Module, objective: Objective) -> list[torch.nn.Parameter]:
    """The parameters to optimise: those of network and objective that require a gradient, each once."""
    found = {id(weight): weight for module in (network, objective) for weight in module.parameters()}
    return [weight for weight in found.values() if weight.requires_grad]
