"""Pictures: draws the network's outputs for a labeled and an unlabeled crop during training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events

from scripts.methods.dbisl import DECODERS
from scripts.networks.heads import foreground_probability

if TYPE_CHECKING:
    from scripts.pictures.crops import Crop

logger = logging.getLogger(__name__)


class TrainingPictures:
    """Draws ``<output_dir>/pictures/iteration_<n>.png`` every ``interval`` iterations.

    A picture shows the first labeled and the first unlabeled crop of the iteration, or the mixed crops of a method that
    mixes them (:meth:`~scripts.methods.Objective.pictured`), with the heads that the step itself
    computed (dropout on, augmented), for each class: every segmentation and distance map, and, for methods that have
    them, where the votes are unanimous and the pseudo-label. A picture costs a second or so, and no random number.

    Args:
        output_dir: of the run.
        interval: iterations between two pictures; 0 draws nothing.
        class_names: of the channels; None to number them from 1.
    """

    def __init__(self, output_dir: str | Path, interval: int = 0, *, class_names: Sequence[str] | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.interval = interval
        self.class_names = class_names

    def attach(self, engine: Engine) -> None:
        if self.interval:
            engine.add_event_handler(Events.STARTED, self._forget_later_pictures)
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._draw)

    def _forget_later_pictures(self, engine: Engine) -> None:
        """Deletes pictures of a former run, or of iterations that a continued run repeats."""
        for path in (self.output_dir / "pictures").glob("iteration_*.png"):
            if int(path.stem.split("_")[1]) > engine.state.iteration:
                path.unlink()

    def _draw(self, engine: Any) -> None:
        iteration = engine.state.iteration
        if not engine.state.loss.total.isfinite():
            return
        path = self.output_dir / "pictures" / f"iteration_{iteration:08d}.png"
        try:
            # Matplotlib takes a second to import, which runs without pictures are spared.
            from scripts.pictures.crops import crops_figure
            from scripts.pictures.panels import write_png

            write_png(crops_figure(crops_of(engine, self.class_names), title=f"iteration {iteration}"), path)
        except Exception:  # no picture is worth a training
            logger.warning("no picture of iteration %d; training goes on.", iteration, exc_info=True)


def crops_of(engine: Any, class_names: Sequence[str] | None = None) -> list[Crop]:
    """The views that the objective shows of the current step, once for each class."""
    from scripts.pictures.crops import Crop

    (output,), objective = engine.state.output, engine.objective
    images, heads = output["image"], output["pred"]
    classes = objective.label_coding.num_classes
    crops = []
    for title, (index, reference) in objective.pictured(output["label"]).items():
        probabilities, distances = drawn_heads({name: head[index] for name, head in heads.items()}, classes)
        pseudo_label, unanimous = pseudo_labels(heads, index, objective)
        for channel in range(classes):
            name = class_names[channel] if class_names else f"class {channel + 1}"
            crops.append(
                Crop(
                    title=f"{title}, {name}" if classes > 1 else title,
                    image=_array(images[index, 0]),
                    reference=None if reference is None else _array(reference[channel]) > 0.5,
                    probabilities={head: _array(value[channel]) for head, value in probabilities.items()},
                    distances={head: _array(value[channel]) for head, value in distances.items()},
                    unanimous=None if unanimous is None else _array(unanimous[channel]) > 0.5,
                    pseudo_label=None if pseudo_label is None else _array(pseudo_label[channel]),
                )
            )
    return crops


def drawn_heads(
    heads: dict[str, torch.Tensor], num_classes: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of the heads of a crop its foreground probabilities, [0, 1], and distance maps, [-1, 1]: (C, H, W, D) each."""
    probabilities, distances = {}, {}
    for name, head in heads.items():
        values = head.detach().float()
        if name.startswith("logits"):
            name = name.replace("logits", "segmentation").replace("_", " ")
            probabilities[name] = foreground_probability(values[None], num_classes)[0]
        elif name.startswith("distance"):
            distances[name.replace("_", " ")] = values
    return probabilities, distances


def pseudo_labels(
    heads: dict[str, torch.Tensor], index: int, objective: Any
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Pseudo-label and unanimity mask (C, H, W, D) of crop ``index``; None if there is none or it is off."""
    if not hasattr(objective, "pseudo_labels") or not objective.active("pseudo"):
        return None, None
    logits, distance = (
        torch.stack([heads[f"{kind}_{decoder}"][index].detach().float() for decoder in DECODERS])
        for kind in ("logits", "distance")
    )
    return objective.pseudo_labels(logits.sigmoid(), distance)


def _array(volume: torch.Tensor):
    return volume.detach().float().cpu().numpy()
