"""Predictor: what the sliding window calls: one network or the mean of several, with chosen heads, maps and flips."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from itertools import chain, combinations, product
from typing import Any

import torch
from torch import nn

from scripts.distance import DistanceToSegmentation
from scripts.errors import UserError
from scripts.methods.dbisl import DECODERS
from scripts.networks.heads import foreground_probability

MAPS = ("distance", "uncertainty")
HEADS = ("segmentation", "distance", "all")


class HeadsError(UserError):
    """The network lacks the heads that a setting needs, which no other case changes."""


class Predictor(nn.Module):
    """Averages a prediction over networks and mirrored inputs; with the defaults a plain call of the network.

    Every network sees the window once for each subset of ``flip_axes`` (eight times for three axes); what it predicts
    is mirrored back, and the mean over networks and subsets is taken, so that n networks and k axes cost n·2^k calls.

    Args:
        networks: have ``forward_heads`` with heads called ``logits...`` and ``distance...``, of which those of a
            decoder end in its name (``_phi``, ``_psi``). The defaults need no more than a call that returns
            probabilities.
        decoders: "both" for the probability that the network itself returns and, of the maps, the mean of all heads of
            a kind; "phi" or "psi" for the heads of one decoder. The other decoder is not run if the network has
            ``forward_decoder``.
        heads: of the chosen decoders, "segmentation" for the heads whose logits are the probability, "distance" for
            those of the distance maps, each turned into a probability by DBiSL's Eq. 1, or "all" for the mean of both.
        maps: names of further outputs, in this order. "distance": signed distance, the mean of those heads.
            "uncertainty": 1 where the heads do not vote unanimously for foreground or background (1 minus DBiSL's
            Eq. 13), 0 elsewhere; averaged, the fraction of windows, networks and flips in which they did not.
        flip_axes: spatial axes to mirror, 0 to 2, in the orientation of the preprocessing (right, anterior, superior).

    Raises:
        UserError: when ``decoders``, ``heads``, ``maps`` or ``flip_axes`` is none of these.
        HeadsError: on the first call, when a network lacks the heads that they need.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        decoders: str = "both",
        heads: str = "segmentation",
        maps: Sequence[str] = (),
        flip_axes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if decoders not in ("both", *DECODERS):
            raise UserError(f"decoders is {decoders!r}; it is 'both', 'phi' or 'psi'.")
        if heads not in HEADS:
            raise UserError(f"heads is {heads!r}; it is one of {', '.join(HEADS)}.")
        if any(name not in MAPS for name in maps):
            raise UserError(f"maps is {list(maps)}; there are {', '.join(MAPS)}.")
        if not isinstance(flip_axes, (list, tuple)) or len({*flip_axes} & {0, 1, 2}) != len(flip_axes):
            raise UserError(f"flip_axes is {flip_axes}; it is a list of different axes out of 0, 1 and 2, or [].")
        self.networks = nn.ModuleList(networks)
        self.decoders = decoders
        self.heads = heads
        self.distance_to_segmentation = DistanceToSegmentation()
        self.maps = tuple(maps)
        # The window's first two axes are batch and channel.
        axes = [axis + 2 for axis in flip_axes]
        self.flips = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))

    @property
    def is_plain(self) -> bool:
        """Whether a network's own probability is all that is asked for."""
        return self.decoders == "both" and self.heads == "segmentation" and not self.maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, (1 + M)·C, H, W, D): C probabilities in [0, 1], then C channels of each of the M ``maps``."""
        pairs = list(product(self.networks, self.flips))
        predictions = (self._predict(n, x.flip(a)).flip(a) if a else self._predict(n, x) for n, a in pairs)
        summed = functools.reduce(torch.add, predictions)
        return summed if len(pairs) == 1 else summed / len(pairs)

    def _predict(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        if self.is_plain:
            return network(x)
        heads = self._heads(network, x)
        logits, distance = self._chosen(heads, "logits"), self._chosen(heads, "distance")
        if self.decoders == "both" and self.heads == "segmentation":
            # What the network itself takes for its probability: the mean of its heads, or one of them.
            probability = network.probability_of(heads) if hasattr(network, "probability_of") else network(x)
        elif not logits and self.heads != "distance":
            raise HeadsError(
                f"decoders is {self.decoders!r} and the network has only {sorted(heads)}: set it to 'both'."
            )
        elif not distance and self.heads != "segmentation":
            raise HeadsError(
                f"heads is {self.heads!r} and the network has only {sorted(heads)}: set it to 'segmentation'."
            )
        else:
            classes = getattr(network, "num_classes", (distance or logits)[0].shape[1])
            of_logits = [foreground_probability(head, classes) for head in logits if self.heads != "distance"]
            of_distance = [self.distance_to_segmentation(head) for head in distance if self.heads != "segmentation"]
            probability = torch.stack([*of_logits, *of_distance]).mean(0)
        outputs = [probability]
        for name in self.maps:
            if name == "distance":
                if not distance:
                    raise HeadsError(f"save_distance needs a distance head and the network has only {sorted(heads)}.")
                outputs.append(torch.stack(distance).mean(0))
                continue
            votes = [foreground_probability(head, probability.shape[1]) > 0.5 for head in logits]
            votes += [head < 0 for head in distance]
            if len(votes) < 2:
                raise HeadsError("save_uncertainty needs two heads that vote, and the network has only one.")
            stacked = torch.stack(votes)
            outputs.append((stacked.any(0) & ~stacked.all(0)).float())
        return torch.cat(outputs, dim=1)

    def _heads(self, network: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The heads by name; of the chosen decoder only, where the network can leave the other out."""
        if self.decoders != "both" and hasattr(network, "forward_decoder"):
            return network.forward_decoder(x, self.decoders, bool(self.maps) or self.heads != "segmentation")
        if not hasattr(network, "forward_heads"):
            raise HeadsError(
                f"maps, single decoders and distance heads need the heads, which a {type(network).__name__} lacks: use "
                "model.pt or TorchScript, or leave save_distance, save_uncertainty, decoders and heads as they are."
            )
        return network.forward_heads(x)

    def _chosen(self, heads: dict[str, torch.Tensor], kind: str) -> list[torch.Tensor]:
        ending = "" if self.decoders == "both" else f"_{self.decoders}"
        return [head for name, head in heads.items() if name.startswith(kind) and name.endswith(ending)]


def one_per_checkpoint(network: nn.Module, ckpt_path: str | Sequence[str]) -> list[nn.Module]:
    """``network`` itself for one path; for a list of paths, such as those of k folds, one copy more for each further.

    Raises:
        UserError: when ``ckpt_path`` is an empty list.
    """
    count = len(ckpt_path) if isinstance(ckpt_path, (list, tuple)) else 1
    if count == 0:
        raise UserError("ckpt_path is an empty list; give one file of weights, or a list of those to average.")
    return [network, *(copy.deepcopy(network) for _ in range(count - 1))]


def predictor_or_network(networks: Sequence[nn.Module], **options: Any) -> nn.Module:
    """A :class:`Predictor` with these ``options``, or the network itself where it would do the same.

    MONAI's federated client loads weights into what evaluates, by the names that they have in the network.
    """
    predictor = Predictor(networks, **options)
    alone = predictor.is_plain and len(networks) == len(predictor.flips) == 1
    return networks[0] if alone else predictor
