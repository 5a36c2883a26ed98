"""Figures: pictures of the worst, median and best case of any finished evaluation, as PNG files.

python -m tools.reports.figures --output_dir outputs/left_atrium --dataset_dir /data/left_atrium
"""

import re
from collections.abc import Sequence
from pathlib import Path

from scripts.pictures.panels import png
from tools.command_line import run_command

from .cases import slices_figure, surfaces_figure
from .distribution import distribution_figure
from .heads import heads_figure
from .results import EvaluationResults


def draw_figures(results: EvaluationResults) -> dict[str, bytes]:
    """The figures of an evaluation as PNG files, by their names: distribution, slices of each chosen case, surfaces."""
    chosen = results.chosen()
    titles = {which: f"{which}: {case}, Dice {results.dice(case):.3f}" for which, case in chosen.items()}
    volumes = {which: results.volumes(case) for which, case in chosen.items()}
    values = {metric: {name: results.values(name, metric) for name in results.classes} for metric in results.metrics}
    figures = {"distribution": distribution_figure(values)}
    for which, case in volumes.items():
        figures[f"slices_{which}"] = slices_figure(case, results.classes, title=titles[which])
    figures["surfaces"] = surfaces_figure({titles[which]: case for which, case in volumes.items()}, results.classes)
    return {name: png(figure) for name, figure in figures.items()}


def _file_name(name: str, channel: int) -> str:
    """The number of a class and its name, if it has one, for a file: "1_left_atrium". The number keeps names apart."""
    safe = re.sub(r"[^\w-]+", "_", name).strip("_")
    return f"{channel + 1}_{safe}" if safe and name != str(channel + 1) else str(channel + 1)


def main(
    output_dir: str,
    dataset_dir: str,
    figures_dir: str | None = None,
    model_dir: str | None = None,
    regions: Sequence[Sequence[int]] | None = None,
    ignore_value: int | None = None,
) -> None:
    """Draws an evaluation that has finished.

    Args:
        output_dir: of the evaluation.
        dataset_dir: of the data set that was evaluated.
        figures_dir: where the PNG files go; <output_dir>/figures by default.
        model_dir: the training's ckpt_dir; draws every head of the network and where they agree, too.
        regions: as in the config, for overlapping regions.
        ignore_value: as in the config, of voxels that nobody annotated; they are drawn as an area.
    """
    results = EvaluationResults(output_dir, dataset_dir, regions=regions, ignore_value=ignore_value)
    folder = Path(figures_dir) if figures_dir else results.output_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in draw_figures(results).items():
        written.append(folder / f"{name}.png")
        written[-1].write_bytes(picture)
    for which, case in results.chosen().items():
        if model_dir is None:
            break
        paths = results.paths(case)
        for channel, name in enumerate(results.classes):
            written.append(folder / f"heads_{which}_{_file_name(name, channel)}.png")
            heads_figure(
                model_dir,
                paths["image"],
                paths["label"],
                values=results.label_values(channel),
                title=f"{which}: {case}, {name}",
                path=written[-1],
                channel=channel,
            )
    print("\n".join(str(path) for path in written))


if __name__ == "__main__":
    run_command(main)
