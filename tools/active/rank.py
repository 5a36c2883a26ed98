"""Rank: the unlabeled cases of a data set in the order in which to label them, with reasons and pictures.

python -m scripts rank --runs outputs/run --dataset_dir DIR --output_dir outputs/ranking --strategy combined
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from scripts.data import DataError, NiftiReader, images_of
from scripts.data.colours import class_colours
from scripts.files import replacing, write_text
from tools.active.strategies import STRATEGIES, order
from tools.command_line import run_command
from tools.ensemble import KINDS, Case, Ensemble, agreements, uncertainty
from tools.tables import write_csv

COLUMNS = ("rank", "case", "image", "score", "reason", *KINDS, "distance", "nearest", "picture")
TABLE, SETTINGS = "ranking.csv", "ranking.json"
WORDS = dict(zip(KINDS, ("members", "decoders", "mask and distance map", "mirroring")))


def rank(
    runs: str | Sequence[str],
    dataset_dir: str,
    output_dir: str,
    strategy: str = "random",
    mirror: bool = False,
    pictures: bool = True,
    seed: int = 0,
    num_labeled: int | None = None,
    labeled_draw: int | None = None,
    splits: Mapping[str, Sequence[int]] | None = None,
    device: str | None = None,
) -> str:
    """Orders the unlabeled cases of a data set by how much a label of each is expected to help.

    Args:
        runs: one or several trainings: output_dir, ckpt_dir or model.pt.
        dataset_dir: of the data set.
        output_dir: gets ranking.csv, ranking.json and the folder pictures.
        strategy: random, disagreement, diversity or combined.
        mirror: compares the predictions of mirror images, too, along the axes that each training mirrored.
        pictures: draws every case, where its prediction is most uncertain.
        seed: of the strategy random.
        num_labeled: as in the training; like the next two, by default what run.json says.
        labeled_draw: as in the training.
        splits: as in the training.
        device: such as cpu or cuda:0; by default a GPU if there is one.

    Raises:
        DataError: when nothing can be ranked; after the others are, when cases failed.
    """
    if strategy not in STRATEGIES:
        raise DataError(f"strategy is {strategy!r}; it is one of {', '.join(STRATEGIES)}.")
    given: dict[str, Any] = {"num_labeled": num_labeled, "labeled_draw": labeled_draw, "splits": splits}
    ensemble = Ensemble(runs, dataset_dir, mirror=mirror, device=device, **given)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ranked(ensemble, strategy, seed=seed, pictures=folder / "pictures" if pictures else None)
    with replacing(folder / TABLE) as temporary:
        write_csv(temporary, COLUMNS, rows)
    settings = {
        "runs": [str(Path(run).resolve()) for run in ([runs] if isinstance(runs, str) else runs)],
        "dataset_dir": str(Path(dataset_dir).resolve()),
        "strategy": strategy,
        "mirror": mirror,
        "num_labeled": ensemble.num_labeled,
        "labeled_draw": ensemble.setting("labeled_draw", labeled_draw, 0),
        "splits": ensemble.setting("splits", splits),
    }
    write_text(folder / SETTINGS, json.dumps(settings, indent=2))
    failed = [row["case"] for row in rows if row["rank"] == ""]
    if failed:
        raise DataError(f"{len(failed)} of {len(rows)} cases failed; the others are in {folder / TABLE}, with reasons.")
    first = "\n".join(f"{row['rank']}. {row['case']}: {row['reason']}" for row in rows[:10])
    return f"{first}\n{len(rows)} cases are in {folder / TABLE}, by the strategy {strategy}."


def ranked(ensemble: Ensemble, strategy: str, *, seed: int = 0, pictures: Path | None = None) -> list[dict[str, Any]]:
    """The rows of ranking.csv, in the order in which to label the cases; those that failed are last, without a rank.

    Args:
        strategy, seed: see :func:`~tools.active.strategies.order`.
        pictures: folder for them; None for none.

    Raises:
        DataError: when there is no unlabeled case, all fail, or there is nothing that could disagree.
    """
    rows: list[dict[str, Any]] = []
    features, broken = [], []
    for case in ensemble.predict(ensemble.unlabeled):
        row: dict[str, Any] = {"rank": "", "case": case.name, "image": images_of(case.entry)[0]}
        if not case.predictions:
            broken.append({**row, "reason": case.reason})
            continue
        row |= {k: None if v is None else round(v, 4) for k, v in agreements(case.predictions, case.ensemble).items()}
        rows.append(row)
        features.append(_features(case))
        if pictures is not None:
            row["picture"] = draw(case, ensemble, pictures / f"{case.name}.png", row).name
    if not rows:
        raise DataError(
            f"{ensemble.datalist.path} has {len(ensemble.unlabeled)} unlabeled cases, and none could be ranked"
            + (f": {broken[0]['case']}: {broken[0]['reason']}" if broken else ".")
        )
    found = [[row[kind] for kind in KINDS if row[kind] is not None] for row in rows]
    needs_doubt = strategy in ("disagreement", "combined")
    if needs_doubt and not all(found):
        raise DataError(
            f"strategy {strategy} needs predictions that can disagree, and the run has one network with one head: give "
            "several runs, such as seeds, or --mirror true."
        )
    doubt = [1 - fmean(values) if values else 0.0 for values in found]
    with_features = all(feature is not None for feature in features)
    labeled, names = np.empty((0, 0)), [row["case"] for row in rows]
    if strategy in ("diversity", "combined") and with_features:
        known = [case for case in ensemble.predict(ensemble.labeled) if case.predictions]
        labeled = np.array([_features(case) for case in known])
        names += [case.name for case in known]
    steps = order(
        strategy,
        doubt=doubt,
        features=np.array(features) if with_features else None,
        labeled=labeled if with_features else None,
        seed=seed,
    )
    result = []
    for turn, step in enumerate(steps, 1):
        row = {**rows[step.case], "rank": turn, "score": round(step.score, 4)}
        if step.nearest is not None:
            row |= {"distance": round(step.distance or 0, 4), "nearest": names[step.nearest]}
        result.append({**row, "reason": _reason(row, strategy, doubtful=step.doubt is not None)})
    return [*result, *broken]


def _agreed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{WORDS[kind]} {row[kind]:.2f}" for kind in KINDS if row[kind] is not None)


def _reason(row: Mapping[str, Any], strategy: str, *, doubtful: bool) -> str:
    reasons = [f"agreement {_agreed(row)}"] if doubtful else []
    if "nearest" in row:
        reasons.append(f"{row['distance']:.2f} of the mean distance from {row['nearest']}")
    return "; ".join(reasons) or ("by chance" if strategy == "random" else "nearest to the mean of all")


def _features(case: Case) -> np.ndarray | None:
    """(F,), of all members that have features, one after another; None if no member has."""
    found = [one.features.numpy() for one in case.predictions if one.features is not None]
    return np.concatenate(found) if found else None


def draw(case: Case, ensemble: Ensemble, path: Path, row: Mapping[str, Any]) -> Path:
    """Writes the axial slice with most uncertainty: the image, the proposal's outlines, the uncertainty over it."""
    from scripts.pictures import panels

    upright: Any = Orientation("RAS", labels=None)
    source = images_of(case.entry)[0]
    image = Compose([LoadImage(reader=NiftiReader), EnsureChannelFirst(), upright])(source)[0].numpy()
    doubt = upright(_as(uncertainty(case.predictions)[None], case))[0].numpy()
    masks = upright(_as(ensemble.coding.harden(case.ensemble[None])[0], case)).numpy() > 0.5
    spacing = np.linalg.norm(upright(_as(case.ensemble, case)).affine[:3, :3].numpy(), axis=0)
    index = int(doubt.sum((0, 1)).argmax())
    figure = panels.new_figure(3 * panels.PANEL_WIDTH, panels.PANEL_WIDTH + 0.6)
    figure.suptitle(f"{case.name}: agreement {_agreed(row)}" if _agreed(row) else case.name, fontsize=10)
    plane, aspect = image[:, :, index], spacing[1] / spacing[0]
    for axes, title in zip(figure.subplots(1, 3), (f"slice {index}", "proposal", "uncertainty, 0 to 1")):
        panels.draw_image(axes, plane, aspect=aspect, window=panels.grey_window(plane), title=title)
        if title == "proposal":
            for mask, colour in zip(masks, class_colours(len(masks))):
                panels.draw_contour(axes, mask[:, :, index], level=0.5, line={"colour": colour, "style": "solid"})
        elif title.startswith("uncertainty"):
            shown = np.ma.masked_less(doubt[:, :, index], 0.05)
            axes.imshow(shown.T, cmap="inferno", origin="lower", aspect=aspect, vmin=0, vmax=1, alpha=0.8)
    return panels.write_png(figure, path)


def _as(values: torch.Tensor, case: Case) -> Any:
    """Values (C, H, W, D) with the place of the case's image."""
    return MetaTensor(values, meta=dict(case.predictions[0].meta))


if __name__ == "__main__":
    run_command(rank)
