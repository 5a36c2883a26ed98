"""Agreement: whether cases on which predictions disagree are those that a network segments worse.

python -m benchmarks.agreement --run RUN --dataset_dir DIR --num_labeled 2 --labeled_draw 2 --cases 40
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from scipy.stats import spearmanr

from tools.command_line import run_command
from tools.ensemble import KINDS, Ensemble, agreement, agreements


def measure(
    run: str,
    dataset_dir: str,
    num_labeled: int,
    labeled_draw: int = 0,
    splits: Mapping[str, Sequence[int]] | None = None,
    cases: int | None = None,
    mirror: Sequence[int] | None = None,
) -> str:
    """Prints Spearman's correlation of each agreement with the Dice of the prediction, on unlabeled training cases.

    Args:
        run: a training, see tools.active.rank.
        dataset_dir: of a data set in which unlabeled cases have a label, which the training did not see.
        num_labeled: as in the training, like the next two.
        labeled_draw: as in the training.
        splits: as in the training.
        cases: the first so many unlabeled cases; all by default.
        mirror: axes along which mirror images are compared, too.
    """
    given: dict[str, Any] = {"num_labeled": num_labeled, "labeled_draw": labeled_draw, "splits": splits}
    ensemble = Ensemble(run, dataset_dir, mirror=mirror or False, device="cpu", **given)
    true = {case["image"]: case["label"] for case in ensemble.datalist.training[num_labeled:]}
    rows: list[dict[str, Any]] = []
    for case in ensemble.predict([entry for entry in ensemble.unlabeled if entry["image"] in true][:cases]):
        file: Any = nibabel.load(true[case.entry["image"]])
        voxels = np.asarray(file.dataobj).astype(np.int16)
        label = ensemble.coding.encode(torch.from_numpy(voxels)[None, None])[0] > 0.5
        mask = ensemble.coding.harden(case.ensemble[None])[0] > 0.5
        rows.append({"dice": agreement([(mask, label)]), **agreements(case.predictions, case.ensemble)})
    dice = [row["dice"] for row in rows]
    lines = [f"{len(rows)} cases, Dice {np.mean(dice):.3f} +- {np.std(dice, ddof=1):.3f}"]
    for kind in KINDS:
        if rows[0][kind] is not None:
            found = spearmanr([row[kind] for row in rows], dice)
            mean = np.mean([row[kind] for row in rows])
            lines.append(f"{kind}: mean {mean:.3f}, correlation {found.statistic:.2f} (p = {found.pvalue:.2g})")
    mean_of = [np.mean([row[kind] for kind in KINDS if row[kind] is not None]) for row in rows]
    found = spearmanr(mean_of, dice)
    return "\n".join([*lines, f"mean of these: correlation {found.statistic:.2f} (p = {found.pvalue:.2g})"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_command(measure)
