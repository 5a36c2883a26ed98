"""Run: the one page of a run's folder, ``run.html``, about its training and, once it was evaluated, its evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from scripts.data import DataError
from scripts.training.page import training_parts, write_page
from tools.command_line import run_command

from .evaluation import evaluation_parts
from .figures import draw_figures
from .results import EvaluationResults


def main(
    run: str,
    dataset_dir: str | None = None,
    title: str | None = None,
    regions: Sequence[Sequence[int]] | None = None,
    ignore_value: int | None = None,
) -> None:
    """Writes run.html into the folder of a training, an evaluation, or both.

    Args:
        run: the output_dir of the training or evaluation.
        dataset_dir: of the data set, if the training did not take place here, or the data was moved since.
        title: heading; by default the folder's name.
        regions: as in the config, for an evaluation without its training.
        ignore_value: likewise.

    Raises:
        DataError: when ``run`` has neither a training nor an evaluation, or an evaluation is there and its data is not.
    """
    folder = Path(run)
    parts = training_parts(folder)
    if (folder / "metrics.csv").is_file():
        path = folder / "config.json"
        config = ConfigParser(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
        if dataset_dir is None and "dataset_dir" not in config:
            raise DataError(f"{path} does not exist: give the folder of the evaluated data set as --dataset_dir.")
        results = EvaluationResults(
            folder,
            dataset_dir or str(config.get_parsed_content("dataset_dir")),
            regions=config.get("regions") if regions is None else regions,
            ignore_value=config.get("ignore_value") if ignore_value is None else ignore_value,
        )
        # Who opens the page of an evaluated run wants to know how good it is.
        parts = [*evaluation_parts(results, draw_figures(results)), *(["<h2>Training</h2>"] if parts else []), *parts]
    if not parts:
        raise DataError(
            f"{folder} has neither training_log.csv with a row nor metrics.csv: give the output_dir of a training or "
            "an evaluation as --run."
        )
    print(write_page(folder, parts, title=title))


if __name__ == "__main__":
    run_command(main)
