"""Ensemble: what trained runs say of the cases of a data set, together and each by itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd, RandAxisFlipd, RandFlipd
from torch import nn
from tqdm import tqdm

from scripts.command import ROOT
from scripts.data import DataError, Datalist, LabelCoding, case_name, check_cases, images_of
from scripts.files import sha256
from scripts.inference import WeightsCheckpointLoader
from scripts.inference.failures import check_image, innermost
from scripts.methods.mixing import largest_components
from scripts.networks import Network
from scripts.networks.heads import foreground_probability, segmentation_heads
from tools.reports.pseudo_labels import overlap_scores, read_run

KINDS = ("members", "decoders", "mask_distance", "mirrored")


class Prediction(NamedTuple):
    """What one member says of a case, on the grid of its image.

    Args:
        probability: (C, H, W, D), [0, 1], what inference gives.
        segmentations: (P, C, H, W, D), [0, 1], of the P segmentation heads.
        distances: (Q, C, H, W, D), [-1, 1], of the Q distance heads; Q may be 0.
        meta: MONAI's of the image.
        mirrored: (M, C, H, W, D), [0, 1], the probability of each of the M mirror images; None without mirroring.
        features: (F,), the encoder's coarsest features, averaged over the volume; None if the network has no encode.
    """

    probability: torch.Tensor
    segmentations: torch.Tensor
    distances: torch.Tensor
    meta: dict[str, Any]
    mirrored: torch.Tensor | None = None
    features: torch.Tensor | None = None


class Stacked(nn.Module):
    """All heads of a network, averaged over mirror images, in one tensor.

    Its channels are the probability, the P segmentation heads, the Q distance heads and, with mirroring, the
    probability of each of the M mirror images: (B, (1 + P + Q + M)·C, H, W, D).

    Args:
        network: trained, in evaluation mode.
        num_classes: foreground classes C.
        axes: spatial axes to mirror; every subset of them is one mirror image.
    """

    def __init__(self, network: Any, num_classes: int, axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        shifted = [axis + 2 for axis in axes]
        self.flips = list(chain.from_iterable(combinations(shifted, count) for count in range(len(shifted) + 1)))
        self.encodes = getattr(type(network), "encode", Network.encode) is not Network.encode
        self.segmentations = 0  # P of the last call
        self.features: list[torch.Tensor] = []  # (F,) of every window and mirror image since it was cleared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stacks = [self._stack(x.flip(axes)).flip(axes) for axes in self.flips]
        alone = [stack[:, : self.num_classes] for stack in stacks] if len(stacks) > 1 else []
        return torch.cat([torch.stack(stacks).mean(0), *alone], 1)

    def _stack(self, x: torch.Tensor) -> torch.Tensor:
        if self.encodes:
            encoded = self.network.encode(x)
            self.features += list(encoded[-1].mean((2, 3, 4)).float().cpu())
            heads = self.network.decode(encoded)
        else:
            heads = self.network.forward_heads(x)
        one_pass = hasattr(self.network, "probability_of")
        parts = [self.network.probability_of(heads) if one_pass else self.network(x)]
        parts += [foreground_probability(head, self.num_classes) for head in segmentation_heads(heads).values()]
        self.segmentations = len(parts) - 1
        return torch.cat([*parts, *(head for name, head in heads.items() if name.startswith("distance"))], 1).float()


class Member:
    """A trained network with the preprocessing and the windows of its training.

    Args:
        run: output_dir or ckpt_dir of a training, or its model.pt, which has model.json beside it.
        mirror: average over the mirror images that its training showed, and no others; a list of axes, over those.
        device: such as cpu; None for a GPU if there is one.

    Raises:
        DataError: when there are no such weights or settings, or it is not known what the training mirrored.
    """

    def __init__(self, run: str | Path, *, mirror: bool | Sequence[int] = False, device: str | None = None) -> None:
        folder = Path(run)
        self.training = read_run(folder) if (folder / "run.json").is_file() else None
        places = [folder, folder / "model.pt", folder / "models" / "model.pt"]
        if self.training is not None:
            places.insert(0, Path(self.training.get_parsed_content("ckpt_dir")) / "model.pt")
        weights = next((place for place in places if place.is_file()), places[0])
        if not (weights.is_file() and weights.with_suffix(".json").is_file()):
            raise DataError(f"{run} has no model.pt with a model.json beside it: give a training that is finished.")
        self.weights = weights
        self.settings = ConfigParser()
        self.settings.read_config([str(ROOT / "configs" / "inference.json"), str(weights.with_suffix(".json"))])
        if device is not None:
            self.settings["device"] = f"$torch.device({device!r})"
        network = self.settings.get_parsed_content("network").eval()
        WeightsCheckpointLoader(load_path=str(weights), load_dict={"model": network}).load()
        axes = (self._mirrored() if mirror else []) if isinstance(mirror, bool) else list(mirror)
        self.stacked = Stacked(network, self.settings["num_classes"], axes)
        self.origin = {"weights": str(weights.resolve()), "sha256": sha256(weights), "mirrored_axes": axes}

    def _mirrored(self) -> list[int]:
        if self.training is None:
            raise DataError(
                f"{self.weights} does not say which axes its training mirrored: give the training's output_dir, which "
                "has run.json, or leave mirror out."
            )
        get = self.training.get_parsed_content
        return mirrored_axes([*get("augmentation"), *get("spatial_augmentation", default=[])])

    @torch.no_grad()
    def predict(self, case: Mapping[str, Any]) -> Prediction:
        get = self.settings.get_parsed_content
        item = get("preprocessing")({"image": case["image"]})
        check_image(item["image"], images_of(dict(case))[0], in_channels=get("in_channels"))
        window = item["image"].as_tensor()[None].to(get("device"))
        self.stacked.features.clear()
        item["pred"] = MetaTensor(get("inferer")(window, self.stacked)[0].cpu())
        back = Invertd("pred", get("preprocessing"), orig_keys="image", nearest_interp=False)(item)["pred"]
        heads = back.as_tensor().unflatten(0, (-1, get("num_classes")))
        mirrored = len(self.stacked.flips) if len(self.stacked.flips) > 1 else 0
        first, last = 1 + self.stacked.segmentations, len(heads) - mirrored
        features = torch.stack(self.stacked.features).mean(0) if self.stacked.features else None
        return Prediction(
            heads[0], heads[1:first], heads[first:last], back.meta, heads[last:] if mirrored else None, features
        )


class Case(NamedTuple):
    """A case and what the members say of it; ``predictions`` is empty, and ``reason`` says why, where it is broken.

    Args:
        ensemble: (C, H, W, D), [0, 1], the members' mean probability.
    """

    name: str
    entry: dict[str, Any]
    predictions: list[Prediction]
    ensemble: torch.Tensor
    reason: str = ""


class Ensemble:
    """Trained runs whose predictions have a mean, and the labeled and unlabeled cases of a data set.

    Args:
        runs: one or several trainings, see :class:`Member`.
        dataset_dir: folder of dataset.json.
        mirror, device: see :class:`Member`.
        num_labeled, labeled_draw, splits, ignore_value: as in the training; None for what the runs' run.json says.

    Raises:
        DataError: when the runs have different classes or settings, it is not known how many cases are labeled, or two
            unlabeled images have one name.
    """

    def __init__(
        self,
        runs: str | Sequence[str],
        dataset_dir: str | Path,
        *,
        mirror: bool | Sequence[int] = False,
        device: str | None = None,
        num_labeled: int | None = None,
        labeled_draw: int | None = None,
        splits: Mapping[str, Sequence[int]] | None = None,
        ignore_value: int | None = None,
    ) -> None:
        self.members = [
            Member(run, mirror=mirror, device=device) for run in ([runs] if isinstance(runs, str) else runs)
        ]
        settings = self.members[0].settings
        self.in_channels, classes, regions = (settings[name] for name in ("in_channels", "num_classes", "regions"))
        if any((m.settings["num_classes"], m.settings["regions"]) != (classes, regions) for m in self.members):
            raise DataError("num_classes or regions differ between the runs: their predictions have no mean.")
        number = self.setting("num_labeled", num_labeled)
        if number is None:
            raise DataError("none of the runs has a run.json that says what was labeled: give --num_labeled.")
        self.num_labeled: int = number
        draw, cut = self.setting("labeled_draw", labeled_draw, 0), self.setting("splits", splits)
        self.datalist = Datalist(dataset_dir, splits=cut, labeled_draw=draw)
        names = settings.get("class_names")
        ignored = self.setting("ignore_value", ignore_value)
        self.coding = LabelCoding(classes, regions, ignore_value=ignored, class_names=names)
        self.unlabeled = self.datalist.unlabeled(number)
        self.labeled = self.datalist.training[:number]
        called = [case_name(images_of(case)[0]) for case in self.unlabeled]
        if repeated := sorted({name for name in called if called.count(name) > 1}):
            raise DataError(f"{self.datalist.path} has several unlabeled images called {repeated[0]}: rename them.")

    def setting(self, name: str, given: Any, default: Any = None) -> Any:
        """``given``, or what all trainings with a run.json had, or ``default``; DataError where they differ."""
        if given is not None:
            return given
        trainings = [member.training for member in self.members if member.training is not None]
        values = [training.get_parsed_content(name, default=default) for training in trainings]
        if any(value != values[0] for value in values):
            raise DataError(f"{name} differs between the runs ({', '.join(map(str, values))}): give --{name}.")
        return values[0] if values else default

    def predict(self, cases: Sequence[Mapping[str, Any]]) -> Iterator[Case]:
        """The cases one after another, also those that are broken; only a lack of memory stops it."""
        for entry in tqdm(cases, unit="case", disable=None):
            name = case_name(images_of(dict(entry))[0])
            try:
                check_cases([{"image": entry["image"]}], in_channels=self.in_channels)
                found = [member.predict(entry) for member in self.members]
            except (torch.cuda.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # a broken case must not cost the others
                yield Case(name, dict(entry), [], torch.empty(0), innermost(error))
                continue
            yield Case(name, dict(entry), found, torch.stack([one.probability for one in found]).mean(0))


def mirrored_axes(augmentation: Sequence[Any]) -> list[int]:
    """Spatial axes, 0 to 2, each of which MONAI's transforms mirror without the others, in ascending order."""
    axes: set[int] = set()
    for transform in augmentation:
        if isinstance(transform, RandAxisFlipd) and transform.prob > 0:
            axes |= {0, 1, 2}
        elif isinstance(transform, RandFlipd) and transform.prob > 0:
            along = transform.flipper.spatial_axis
            together = [along] if isinstance(along, int) else list(along or range(3))
            axes |= {axis % 3 for axis in together if len(together) == 1}
    return sorted(axes)


def agreement(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """Mean Dice of pairs of masks (C, H, W, D), bool, over the classes that either has; None without a pair.

    It is 0 where no mask has any foreground: nothing was found to agree on.
    """
    values = [overlap_scores(a[c], b[c])["dice"] for a, b in pairs for c in range(len(a))]
    found = [value for value in values if not math.isnan(value)]
    return (fmean(found) if found else 0.0) if pairs else None


def agreements(predictions: Sequence[Prediction], ensemble: torch.Tensor) -> dict[str, float | None]:
    """How far members, decoders, masks and distance maps, and mirror images agree; None with nothing to compare.

    Args:
        predictions: of the members.
        ensemble: (C, H, W, D), their mean probability.

    Returns:
        Dice, [0, 1], for each of ``KINDS``. Members and mirror images are compared with their mean.
    """
    masks = [one.probability > 0.5 for one in predictions]
    heads = [pair for one in predictions for pair in combinations(one.segmentations > 0.5, 2)]
    seen = [(mask, one.distances.mean(0) < 0) for mask, one in zip(masks, predictions) if len(one.distances)]
    of_members = [(mask, ensemble > 0.5) for mask in masks if len(masks) > 1]
    flips = [(one.mirrored, mask) for mask, one in zip(masks, predictions) if one.mirrored is not None]
    of_flips = [(image > 0.5, mask) for images, mask in flips for image in images]
    return dict(zip(KINDS, map(agreement, (of_members, heads, seen, of_flips))))


def uncertainty(predictions: Sequence[Prediction]) -> torch.Tensor:
    """How far the heads and mirror images of all members are from one answer: (H, W, D), float32, [0, 1].

    1 - |2 m - 1| for the mean m of their probabilities (of a distance map, whether it is negative), the largest of all
    classes: 0 where all are sure of the same, 1 where half of them say the opposite, or all are undecided.
    """
    votes = [one.segmentations for one in predictions] + [(one.distances < 0).float() for one in predictions]
    votes += [one.mirrored for one in predictions if one.mirrored is not None]
    return (1 - (2 * torch.cat(votes).mean(0) - 1).abs()).amax(0)


def label_of(mask: torch.Tensor, coding: LabelCoding, otherwise: int = 0) -> torch.Tensor:
    """Foreground channels of 0 and 1, (1, C, H, W, D), as label values (H, W, D), int16.

    ``otherwise`` stands where regions overlap as for no label value.
    """
    label = torch.full(mask.shape[2:], otherwise, dtype=torch.int16)
    for value in coding.values:
        channels = coding.encode(torch.full((1, 1, 1, 1, 1), value))
        label[(mask == channels)[0].all(0)] = value
    return label


def proposed_label(ensemble: torch.Tensor, coding: LabelCoding, *, largest_component: bool) -> torch.Tensor:
    """The ensemble's probability (C, H, W, D) as label values (H, W, D), int16, as inference decodes it."""
    mask = coding.harden(ensemble[None])
    return label_of(largest_components(mask) if largest_component else mask, coding)
