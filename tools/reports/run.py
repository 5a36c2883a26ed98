"""Run: the pages of one run's folder, of its training and, once it was evaluated, of its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import fire
from monai.bundle import ConfigParser

from scripts.data import DataError
from scripts.errors import print_briefly

from . import evaluation, training


def main(run: str, *, dataset_dir: str | None = None, title: str | None = None) -> None:
    """Writes run.html of a training, and report.html where its evaluation has written metrics.csv.

    Args:
        run: the output_dir of the training.
        dataset_dir: of the data set, if it lies elsewhere than at the time of the training.
        title: heading; by default the folder's name.

    Raises:
        DataError: when ``run`` is no folder of a training.
    """
    folder = Path(str(run))
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: give the output_dir of a training.")
    title = title or folder.resolve().name
    if (folder / "training_log.csv").is_file():
        training.main(str(folder), title=title)
    if (folder / "metrics.csv").is_file():
        config = ConfigParser(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        evaluation.main(
            str(folder),
            str(dataset_dir or config.get_parsed_content("dataset_dir")),
            title=title,
            regions=config.get("regions"),
            ignore_value=config.get("ignore_value"),
        )


if __name__ == "__main__":
    print_briefly()
    fire.Fire(main)
