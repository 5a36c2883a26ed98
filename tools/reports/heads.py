"""Heads: every head of a trained network on one image, to draw it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, ResampleToMatch

from scripts.command import ROOT
from scripts.data import DataError, NiftiReader
from scripts.inference import load_weights
from scripts.methods.dbisl import unanimity_mask
from scripts.pictures.crops import Crop, crops_figure
from scripts.pictures.panels import write_png
from scripts.training.pictures import drawn_heads


def predict_heads(model_dir: str | Path, image_path: str | Sequence[str]) -> tuple[Any, dict[str, torch.Tensor], int]:
    """The preprocessed image, a MetaTensor (channels, H, W, D), every head on it by name, and the number of classes.

    Args:
        model_dir: folder of model.pt and of model.json, which training wrote beside it.
        image_path: of the image, or one for each modality.

    Raises:
        DataError: when one of the two files is missing.
    """
    folder = Path(model_dir)
    if not (folder / "model.json").is_file():
        raise DataError(f"{folder / 'model.json'} does not exist: give the ckpt_dir of the training as model_dir.")
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / "inference.json"), str(folder / "model.json")])
    parser["device"] = "$torch.device('cpu')"
    network = parser.get_parsed_content("network").eval()
    load_weights(folder / "model.pt", network)
    image = parser.get_parsed_content("preprocessing")({"image": image_path})["image"]
    windows = SlidingWindowInferer(roi_size=parser["patch_size"], overlap=0.5)
    with torch.no_grad():
        heads: Any = windows(image.as_tensor()[None], network.forward_heads)
    return image, {name: head[0] for name, head in heads.items()}, parser.get_parsed_content("num_classes")


def heads_figure(
    model_dir: str | Path,
    image_path: str | Sequence[str],
    label_path: str | Sequence[str],
    *,
    title: str,
    path: str | Path,
    channel: int = 0,
    values: Sequence[int] = (1,),
) -> Path:
    """Draws one class of a case as the network sees it: every head, where all agree, and their mean; returns ``path``.

    Args:
        model_dir, image_path: see :func:`predict_heads`.
        label_path: of the reference, which is drawn on the grid of the network.
        title: heading.
        path: PNG file to write.
        channel: index of the class.
        values: of the label that make up the class.
    """
    image, heads, classes = predict_heads(model_dir, image_path)
    found = [{name: head[channel] for name, head in kind.items()} for kind in drawn_heads(heads, classes)]
    probability = torch.stack([*found[0].values()])
    distance = torch.stack([*found[1].values()]) if found[1] else None
    label = Compose([LoadImage(reader=NiftiReader), EnsureChannelFirst()])(label_path)
    label = ResampleToMatch(mode="nearest", padding_mode="zeros")(label, image)
    drawn: Any = [{name: head.numpy() for name, head in kind.items()} for kind in found]
    crop = Crop(
        title="image",
        image=image[0].numpy(),
        reference=np.isin(label[0].numpy().round(), values),
        probabilities=drawn[0],
        distances=drawn[1],
        unanimous=unanimity_mask(probability, distance).numpy(),
        pseudo_label=probability.mean(0).numpy(),
        aspect=float(image.pixdim[1] / image.pixdim[0]),
    )
    return write_png(crops_figure([crop], title=title), path)
