"""Demo report: the table of DBiSL and labels-only, the picture of a new volume, and where everything was written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import fire
import nibabel
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer

from scripts.objectives.dbisl import unanimity_mask

from .figure import overlay_figure

METHODS = {"dbisl": "DBiSL", "supervised": "labels only"}
METRICS = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "95HD (mm)", "asd_mm": "ASD (mm)"}


def metric_means(summary: Path) -> dict[str, str]:
    """Mean and standard deviation of each metric in a metrics_summary.csv with one class, as "0.853 +- 0.021"."""
    with summary.open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    return {name: f"{float(row['mean']):.3f} +- {float(row['std'] or 'nan'):.3f}" for name, row in rows.items()}


def predict_heads(model_dir: Path, image_path: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The preprocessed image (H, W, D) and every head of the trained network on it, each (C, H, W, D)."""
    parser = ConfigParser()
    parser.read_config(["configs/inference.json", str(model_dir / "model.json")])
    parser["device"] = "$torch.device('cpu')"
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(model_dir / "model.pt", weights_only=True, map_location="cpu"))
    image = parser.get_parsed_content("preprocessing")({"image": str(image_path)})["image"].as_tensor()
    windows = SlidingWindowInferer(roi_size=parser["patch_size"], overlap=0.5)
    with torch.no_grad():
        heads: Any = windows(image[None], network.forward_heads)
    return image[0], {name: head[0] for name, head in heads.items()}


def draw(demo_dir: Path) -> Path:
    """Draws the new volume with both decoders, the distance map and the unanimity mask."""
    image_path = next((demo_dir / "data" / "new_volumes").glob("*.nii.gz"))
    # The network sees the image in RAS order; its reference is drawn over it in the same.
    reference = nibabel.as_closest_canonical(
        nibabel.load(demo_dir / "data" / "new_volumes_reference" / image_path.name)
    )
    image, heads = predict_heads(demo_dir / "dbisl" / "models", image_path)
    probability = torch.stack([torch.sigmoid(heads["logits_phi"]), torch.sigmoid(heads["logits_psi"])])
    distance = torch.stack([heads["distance_phi"], heads["distance_psi"]])
    return overlay_figure(
        image.numpy(),
        reference.get_fdata() > 0,
        probability[0, 0].numpy(),
        probability[1, 0].numpy(),
        distance.mean(0)[0].numpy(),
        unanimity_mask(probability, distance)[0].numpy(),
        title=f"{image_path.name}, which was in no list of the training",
        path=demo_dir / "new_volume.png",
        spacing=reference.header.get_zooms()[:3],
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
    fire.Fire(main)
