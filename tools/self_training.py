"""Self-training: pseudo-labels of the unlabeled cases from trained runs, in a new dataset.json.

python -m tools.self_training --runs "['outputs/a','outputs/b']" --dataset_dir /data/mine --output_dir outputs/pseudo
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import fire
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd, RandAxisFlipd, RandFlipd, SaveImage
from torch import nn
from tqdm import tqdm

from scripts.data import DataError, Datalist, LabelCoding, case_name, check_cases, images_of
from scripts.data.datalist import LISTS, PSEUDO
from scripts.errors import print_briefly
from scripts.files import replacing, sha256
from scripts.inference import NiftiWriter, Predictor, WeightsCheckpointLoader, contained_name
from scripts.inference.tolerant import check_image, innermost
from scripts.methods.mixing import largest_components
from scripts.networks.heads import foreground_probability, segmentation_heads
from scripts.overrides import typed
from tools.preparation.dataset import relative
from tools.reports.pseudo_labels import overlap_scores, read_run

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("case", "image", "score", "members", "decoders", "mask_distance", "unknown_share", "kept", "reason")
IGNORE_VALUE = 255


class Prediction(NamedTuple):
    """What one member says of a case, on the grid of its image.

    Args:
        probability: (C, H, W, D), [0, 1], what inference gives.
        segmentations: (P, C, H, W, D), [0, 1], of the P segmentation heads.
        distances: (Q, C, H, W, D), [-1, 1], of the Q distance heads; Q may be 0.
        meta: MONAI's of the image.
    """

    probability: torch.Tensor
    segmentations: torch.Tensor
    distances: torch.Tensor
    meta: dict[str, Any]


class Stacked(nn.Module):
    """Probability, then the segmentation heads' probabilities, then the distances: (B, (1 + P + Q)·C, H, W, D)."""

    def __init__(self, network: Any, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.segmentations = 0  # P of the last call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
        mirror: average over the mirror images that its training showed, and no others.
        device: such as cpu; None for a GPU if there is one.

    Raises:
        DataError: when there are no such weights or settings, or it is not known what the training mirrored.
    """

    def __init__(self, run: str | Path, *, mirror: bool = False, device: str | None = None) -> None:
        folder = Path(run)
        self.training = read_run(folder) if (folder / "run.json").is_file() else None
        places = [folder, folder / "model.pt", folder / "models" / "model.pt"]
        if self.training is not None:
            places.insert(0, Path(self.training.get_parsed_content("ckpt_dir")) / "model.pt")
        weights = next((place for place in places if place.is_file()), places[0])
        if not (weights.is_file() and weights.with_suffix(".json").is_file()):
            raise DataError(f"{run} has no model.pt with a model.json beside it: give a training that is finished.")
        self.settings = ConfigParser()
        self.settings.read_config([str(ROOT / "configs" / "inference.json"), str(weights.with_suffix(".json"))])
        if device is not None:
            self.settings["device"] = f"$torch.device({device!r})"
        network = self.settings.get_parsed_content("network").eval()
        WeightsCheckpointLoader(load_path=str(weights), load_dict={"model": network})(Engine(lambda *_: None))
        axes = self._mirrored(weights) if mirror else []
        self.stacked = Stacked(network, self.settings["num_classes"])
        self.predictor = Predictor([self.stacked], flip_axes=axes)
        self.origin = {"weights": str(weights.resolve()), "sha256": sha256(weights), "mirrored_axes": axes}

    def _mirrored(self, weights: Path) -> list[int]:
        if self.training is None:
            raise DataError(
                f"{weights} does not say which axes its training mirrored: give the training's output_dir, which has "
                "run.json, or leave mirror out."
            )
        get = self.training.get_parsed_content
        return mirrored_axes([*get("augmentation"), *get("spatial_augmentation", default=[])])

    @torch.no_grad()
    def predict(self, case: Mapping[str, Any]) -> Prediction:
        get = self.settings.get_parsed_content
        item = get("preprocessing")(dict(case))
        check_image(item["image"], images_of(case)[0], in_channels=get("in_channels"))
        window = item["image"].as_tensor()[None].to(get("device"))
        item["pred"] = MetaTensor(get("inferer")(window, self.predictor)[0].cpu())
        back = Invertd("pred", get("preprocessing"), orig_keys="image", nearest_interp=False)(item)["pred"]
        first = 1 + self.stacked.segmentations
        heads = back.as_tensor().unflatten(0, (-1, get("num_classes")))
        return Prediction(heads[0], heads[1:first], heads[first:], back.meta)


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
    """How far members, decoders, and masks and distance maps agree, Dice; None where there is nothing to compare.

    Args:
        predictions: of the members.
        ensemble: (C, H, W, D), their mean probability.
    """
    masks = [one.probability > 0.5 for one in predictions]
    heads = [pair for one in predictions for pair in combinations(one.segmentations > 0.5, 2)]
    seen = [(mask, one.distances.mean(0) < 0) for mask, one in zip(masks, predictions) if len(one.distances)]
    of_members = [(mask, ensemble > 0.5) for mask in masks if len(masks) > 1]
    return {"members": agreement(of_members), "decoders": agreement(heads), "mask_distance": agreement(seen)}


def pseudo_label(
    predictions: Sequence[Prediction], ensemble: torch.Tensor, coding: LabelCoding, *, largest_component: bool
) -> torch.Tensor:
    """Label values (1, H, W, D), int16: ``ignore_value`` where not all heads of all members vote alike.

    Args:
        predictions: of the members.
        ensemble: (C, H, W, D), their mean probability.
        coding: with an ``ignore_value``; it also stands where regions overlap as for no label value.
        largest_component: the other components of each class become background, and known.
    """
    votes = torch.cat([votes for one in predictions for votes in (one.segmentations > 0.5, one.distances < 0)])
    unknown = (votes.any(0) & ~votes.all(0)).any(0)
    mask = coding.harden(ensemble[None])
    if largest_component:
        whole, mask = mask, largest_components(mask)
        unknown &= (whole == mask)[0].all(0)
    label = torch.full(mask.shape[2:], int(coding.ignore_value or IGNORE_VALUE), dtype=torch.int16)
    for value in coding.values:
        channels = coding.encode(torch.full((1, 1, 1, 1, 1), value))
        label[(mask == channels)[0].all(0) & ~unknown] = value
    return label[None]


def setting(name: str, given: Any, members: Sequence[Member], default: Any = None) -> Any:
    """``given``, or what all trainings with a run.json had, or ``default``; DataError where they differ."""
    if given is not None:
        return given
    trainings = [member.training for member in members if member.training is not None]
    values = [training.get_parsed_content(name, default=default) for training in trainings]
    if any(value != values[0] for value in values):
        raise DataError(f"{name} differs between the runs ({', '.join(map(str, values))}): give --{name}.")
    return values[0] if values else default


def rebased(case: Any, source: Path, folder: Path) -> dict[str, Any]:
    """An entry of ``source``/dataset.json with paths relative to ``folder``."""
    case = dict(case) if isinstance(case, dict) else {"image": case}
    for key in ("image", "label"):
        if path := case.get(key):
            case[key] = relative([source / one for one in (path if isinstance(path, list) else [path])], folder)
    return case


def main(
    runs: str | Sequence[str],
    dataset_dir: str,
    output_dir: str,
    threshold: float = 0.8,
    mirror: bool | str = False,
    largest_component: bool | str = False,
    ignore_value: int | None = None,
    num_labeled: int | None = None,
    labeled_draw: int | None = None,
    splits: Mapping[str, Sequence[int]] | None = None,
    device: str | None = None,
) -> None:
    """Labels the unlabeled cases of a data set by an ensemble, and lists the good ones in a new dataset.json.

    Args:
        runs: one or several trainings: output_dir, ckpt_dir or model.pt.
        dataset_dir: of the data set whose unlabeled cases get pseudo-labels.
        output_dir: gets dataset.json, pseudo_labels.csv and the folder labels.
        threshold: score, 0 to 1, the least of the agreements, under which a case is left out.
        mirror: averages over the mirror images that each training showed.
        largest_component: keeps the largest part of every class alone.
        ignore_value: label value of voxels on which not all agree; 255, or what the runs had.
        num_labeled: as in the training; like the next two, by default what run.json says.
        labeled_draw: as in the training.
        splits: as in the training.
        device: such as cpu or cuda:0; by default a GPU if there is one.
    """
    folder, source = Path(output_dir), Path(dataset_dir)
    if folder.resolve() == source.resolve():
        raise DataError(f"output_dir {folder} is the folder of the data set: choose another, to keep it as it is.")
    mirrored, largest = bool(typed(mirror)), bool(typed(largest_component))
    members = [Member(run, mirror=mirrored, device=device) for run in ([runs] if isinstance(runs, str) else runs)]
    in_channels, classes, regions = (members[0].settings[name] for name in ("in_channels", "num_classes", "regions"))
    if any((m.settings["num_classes"], m.settings["regions"]) != (classes, regions) for m in members):
        raise DataError("num_classes or regions differ between the runs: their predictions have no mean.")
    number = setting("num_labeled", num_labeled, members)
    if number is None:
        raise DataError("none of the runs has a run.json that says what was labeled: give --num_labeled.")
    draw, cut = setting("labeled_draw", labeled_draw, members, 0), setting("splits", splits, members)
    datalist = Datalist(source, splits=cut, labeled_draw=draw)
    ignored = setting("ignore_value", ignore_value, members) or IGNORE_VALUE
    coding = LabelCoding(classes, regions, ignore_value=ignored)
    cases = datalist.unlabeled(number)
    names = [case_name(images_of(case)[0]) for case in cases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{datalist.path} has several unlabeled images called {repeated[0]}: rename them.")
    options: dict[str, Any] = {"writer": NiftiWriter, "output_name_formatter": contained_name, "print_log": False}
    options |= {"output_dtype": "int16", "resample": False, "separate_folder": False, "savepath_in_metadict": True}
    save = SaveImage(folder / "labels", "pseudo", **options)

    origin = {"date": datetime.now(UTC).date().isoformat(), "members": [member.origin for member in members]}
    kept: list[dict[str, Any]] = []
    failed = 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    with (folder / "pseudo_labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for name, case in zip(names, tqdm(cases, unit="case")):
            row: dict[str, Any] = {"case": name, "image": images_of(case)[0], "kept": False}
            try:
                check_cases([case], in_channels=in_channels)
                predictions = [member.predict(case) for member in members]
            except (torch.cuda.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # a broken case must not cost the others
                failed += 1
                table.writerow({**row, "reason": innermost(error)})
                continue
            ensemble = torch.stack([one.probability for one in predictions]).mean(0)
            found = agreements(predictions, ensemble)
            values = [value for value in found.values() if value is not None]
            if not values:
                raise DataError(
                    "one network with one head has nothing to agree with: give several runs, such as seeds."
                )
            label = pseudo_label(predictions, ensemble, coding, largest_component=largest)
            row |= {**found, "score": min(values), "unknown_share": float((label == ignored).float().mean())}
            if min(values) < threshold:
                table.writerow({**row, "reason": f"score under {threshold}"})
                continue
            saved = save(MetaTensor(label, meta=predictions[0].meta))
            files = {"image": images_of(case), "label": saved.meta["saved_to"]}
            kept.append({**rebased(files, Path(), folder), "pseudo_label": {**origin, "score": min(values)}})
            table.writerow({**row, "kept": True})
            file.flush()
    if not kept:
        raise DataError(
            f"none of {len(cases)} cases got a pseudo-label; {file.name} says why: lower threshold, or train on."
        )
    content = json.loads(datalist.path.read_text(encoding="utf-8"))
    content |= {key: [rebased(case, source, folder) for case in content[key]] for key in LISTS if key in content}
    with replacing(folder / "dataset.json") as temporary:
        text = json.dumps({**content, PSEUDO: kept}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    print(
        f"{len(kept)} of {len(cases)} unlabeled cases have pseudo-labels, in {folder / 'dataset.json'}; {file.name} "
        "has the scores of all."
    )
    if failed:
        raise DataError(f"{failed} of {len(cases)} cases failed; the others are complete. {file.name} has the reasons.")


if __name__ == "__main__":
    print_briefly()
    fire.Fire(main)
