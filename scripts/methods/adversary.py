"""Adversary: base of the methods in which a discriminator tells predictions on unlabeled crops from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from monai.networks import eval_mode, train_mode
from torch import nn
from torch.optim import Optimizer

from scripts.ranks import average

from .objective import Heads, Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network


class AdversarialObjective(Objective):
    """An objective with the term ``adversarial``, CE(D(maps of the unlabeled crops), "labeled"), and D's own training.

    One iteration, in the order of the published programs of SASSNet:

    1. The network's step. D judges the unlabeled crops in evaluation mode and receives no gradient; its judgement is
       the adversarial term.
    2. D's step, after the network's (:meth:`after_step`): the network, with its new weights and in evaluation mode,
       predicts all crops of the batch again, without gradient; D in training mode minimises the cross-entropy of its
       decisions, labeled against unlabeled.

    ``state_dict`` holds D and the state of its optimiser, and not the network. Without unlabeled crops in the batch, or
    with the term switched off, D is neither asked nor trained.

    Args:
        network: what is trained; it has ``forward_heads``.
        discriminator: D, see :class:`~scripts.networks.Discriminator`.
        discriminator_optimizer: over D's parameters.
        options: ``dice_background`` of :class:`~scripts.methods.Objective`.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        discriminator: nn.Module,
        discriminator_optimizer: Optimizer,
        weights: Weights = None,
        **options: bool,
    ) -> None:
        super().__init__(label_coding, weights, **options)
        # Switched on for D's own step alone, so that the network's loss neither computes nor leaves gradients there.
        self.discriminator = discriminator.requires_grad_(False)
        self.discriminator_optimizer = discriminator_optimizer
        # In a tuple, so that it is no submodule: its weights are the checkpoint's "model", not the objective's state.
        self._network = (network,)
        self._crops: tuple[torch.Tensor, int] | None = None

    def judged_maps(self, heads: Tensors) -> torch.Tensor:
        """What D sees of the network's heads, (B, C, H, W, D)."""
        raise NotImplementedError

    def further_heads(self, heads: Tensors, targets: Tensors) -> Tensors:
        self._crops = None
        image, labeled = targets["image"], len(targets["label"])
        if not self.active("adversarial") or len(image) == labeled:
            return {}
        self._crops = (image, labeled)
        maps = self.judged_maps(Heads((name, head[labeled:]) for name, head in heads.items()))
        self.discriminator.eval()
        return {"decision": self.discriminator(maps, image[labeled:])}

    def adversarial_term(self, heads: Tensors) -> Tensors:
        """The term ``adversarial``, where D was asked: small if D takes the unlabeled crops for labeled ones."""
        if "decision" not in heads:
            return {}
        decision = heads["decision"]
        return {"adversarial": F.binary_cross_entropy_with_logits(decision, torch.ones_like(decision))}

    def after_step(self, iteration: int) -> None:
        if self._crops is None:
            return
        (image, labeled), self._crops = self._crops, None
        (network,) = self._network
        with eval_mode(network):
            maps = self.judged_maps(network.forward_heads(image)).float()
        self.discriminator.requires_grad_(True)
        with train_mode(self.discriminator):
            decision = self.discriminator(maps, image)
            truth = torch.zeros_like(decision)
            truth[:labeled] = 1
            self.discriminator_optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(decision, truth).backward()
            average(weight.grad for weight in self.discriminator.parameters() if weight.grad is not None)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()
        self.discriminator.requires_grad_(False)

    def get_extra_state(self) -> dict[str, Any]:
        return self.discriminator_optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.discriminator_optimizer.load_state_dict(state)
