"""Demo report: the table of DBiSL and labels-only, the picture of a new volume, and where everything was written."""

from __future__ import annotations

import csv
from pathlib import Path

from tools.command_line import run_command
from tools.reports.heads import heads_figure

METHODS = {"dbisl": "DBiSL", "supervised": "labels only"}
METRICS = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "95HD (mm)", "asd_mm": "ASD (mm)"}


def metric_means(summary: Path) -> dict[str, str]:
    """Mean and standard deviation of each metric in a metrics_summary.csv with one class, as "0.853 +- 0.021"."""
    with summary.open(newline="", encoding="utf-8") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    return {
        name: f"{float(row['mean'] or 'nan'):.3f} +- {float(row['std'] or 'nan'):.3f}" for name, row in rows.items()
    }


def draw(demo_dir: Path) -> Path:
    """Draws the new volume with both decoders, the distance map and the unanimity mask."""
    image_path = next((demo_dir / "data" / "new_volumes").glob("*.nii.gz"))
    return heads_figure(
        demo_dir / "dbisl" / "models",
        str(image_path),
        str(demo_dir / "data" / "new_volumes_reference" / image_path.name),
        title=f"{image_path.name}, which was in no list of the training",
        path=demo_dir / "new_volume.png",
    )


def main(demo_dir: str = "outputs/demo", iterations: int = 0) -> None:
    """Prints the demo's results.

    Args:
        demo_dir: where `make demo` wrote everything.
        iterations: of each training, for the heading.
    """
    root = Path(demo_dir)
    picture = draw(root)
    print(f"\nSynthetic left atria, 4 labeled volumes, {iterations} iterations each, 6 test volumes, mean +- std\n")
    print("| method      | " + " | ".join(f"{name:>17}" for name in METRICS.values()) + " |")
    print("|-------------|" + "|".join("-" * 19 for _ in METRICS) + "|")
    for method, name in METHODS.items():
        means = metric_means(root / method / "metrics_summary.csv")
        print(f"| {name:<11} | " + " | ".join(f"{means[key]:>17}" for key in METRICS) + " |")
    print(f"\nmasks of the test volumes  {root / 'dbisl'}/*_seg.nii.gz")
    for path in sorted((root / "new_volumes").glob("*.nii.gz")):
        print(f"new volume                 {path}")
    print(f"picture                    {picture}")


if __name__ == "__main__":
    run_command(main)
