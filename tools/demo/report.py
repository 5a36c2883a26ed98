"""Demo report: the table of the demo's methods, the picture of a new volume, and where everything was written."""

from __future__ import annotations

import csv
from pathlib import Path

from tools.command_line import run_command
from tools.reports.heads import heads_figure

METHODS = {"supervised": "labels only", "bcp": "BCP (copy-paste)", "dbisl": "DBiSL"}
METRICS = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "95HD (mm)", "asd_mm": "ASD (mm)"}


def metric_means(summary: Path) -> dict[str, str]:
    """Mean and standard deviation of each metric in a metrics_summary.csv with one class, as "0.853 +- 0.021"."""
    with summary.open(newline="", encoding="utf-8") as file:
        return {
            row["metric"]: f"{float(row['mean'] or 'nan'):.3f} +- {float(row['std'] or 'nan'):.3f}"
            for row in csv.DictReader(file)
        }


def main(demo_dir: str = "outputs/demo", iterations: int = 0) -> None:
    """Prints the demo's results, and draws what DBiSL's four heads see in the new volume.

    Args:
        demo_dir: where `make demo` wrote everything.
        iterations: of each training, for the heading.
    """
    root = Path(demo_dir)
    image = next((root / "data" / "new_volumes").glob("*.nii.gz"))
    picture = heads_figure(
        root / "dbisl" / "models",
        str(image),
        str(root / "data" / "new_volumes_reference" / image.name),
        title=f"{image.name}, which was in no list of the training",
        path=root / "new_volume.png",
    )
    print(f"\nSynthetic left atria, 4 labeled volumes, {iterations} iterations each, 6 test volumes, mean +- std\n")
    print(f"| {'method':<16} | " + " | ".join(f"{name:>17}" for name in METRICS.values()) + " |")
    print(f"|{'-' * 18}|" + "|".join("-" * 19 for _ in METRICS) + "|")
    for method, name in METHODS.items():
        means = metric_means(root / method / "metrics_summary.csv")
        print(f"| {name:<16} | " + " | ".join(f"{means[key]:>17}" for key in METRICS) + " |")
    print(f"\ncurves and settings        {root}/*/run.html")
    print(f"masks of the test volumes  {root}/*/*_seg.nii.gz")
    for path in sorted((root / "new_volumes").glob("*.nii.gz")):
        print(f"new volume, by BCP         {path}")
    print(f"picture, by DBiSL          {picture}")


if __name__ == "__main__":
    run_command(main)
