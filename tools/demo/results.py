"""Demo results: the table of the demo's methods, the picture of a new volume, and where everything was written."""

from pathlib import Path

from tools.command_line import run_command
from tools.reports.heads import heads_figure
from tools.tables import METRIC_TITLES, markdown_table, read_csv

METHODS = {"supervised": "supervised", "bcp": "BCP (copy-paste)", "dbisl": "DBiSL"}
METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm")


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
    rows = []
    for method, name in METHODS.items():
        summary = {row["metric"]: row for row in read_csv(root / method / "metrics_summary.csv")}
        means = [
            f"{float(summary[key]['mean'] or 'nan'):.3f} +- {float(summary[key]['std'] or 'nan'):.3f}"
            for key in METRICS
        ]
        rows.append([f"{name:<16}", *means])
    print(markdown_table([f"{'method':<16}", *(f"{METRIC_TITLES[key]:<16}" for key in METRICS)], rows))
    print(f"\ncurves and settings        {root}/*/run.html")
    print(f"masks of the test volumes  {root}/*/*_seg.nii.gz")
    for path in sorted((root / "new_volumes").glob("*.nii.gz")):
        print(f"new volume, by BCP         {path}")
    print(f"picture, by DBiSL          {picture}")


if __name__ == "__main__":
    run_command(main)
