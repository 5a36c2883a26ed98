"""Normalization: exchanges a network's BatchNorm for one that does not mix the crops of a batch.

BatchNorm normalises labeled crops with statistics to which the unlabeled crops of the batch contribute. Where nothing
supervises these yet, their activations drift, and with them the statistics that the running averages keep for inference
(docs/methods/dbisl.md has the figures).
"""

from __future__ import annotations

import math

from torch import nn

NORMALIZATIONS = ("batch", "group", "instance")
GROUPS = 8


def set_normalization(network: nn.Module, kind: str) -> None:
    """Exchanges every BatchNorm3d of ``network`` in place; the number of parameters stays the same.

    Args:
        network: built with BatchNorm, as the papers' V-Net.
        kind: "batch" leaves it; "group" puts group normalisation with up to 8 groups; "instance" normalises every
            channel of a crop by itself, for which the coarsest level needs more than one voxel.

    Raises:
        ValueError: when ``kind`` is unknown.
    """
    if kind not in NORMALIZATIONS:
        raise ValueError(f"normalization is {kind!r}; it is one of {', '.join(NORMALIZATIONS)}.")
    if kind == "batch":
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, _normalization(kind, child.num_features))


def _normalization(kind: str, channels: int) -> nn.Module:
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
