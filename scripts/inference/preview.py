"""Preview: a picture of every case with the contours of its mask in three planes, and a page of all pictures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, MapTransform, Orientation

from scripts.data import DataError, LabelCoding, NiftiReader
from scripts.data.colours import class_colours
from scripts.files import replacing

from .outcomes import checked_names, class_volumes, volume_text
from .outputs import name_of, output_path

PAGE = "preview.html"
ENDING = "_preview.png"
# The two axes of the picture and the one that is cut, in (right, anterior, superior).
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
STYLE = "body{font-family:system-ui,sans-serif;margin:2rem} img{max-width:100%} h2{font-size:1rem;margin:2rem 0 0}"


class SavePreviewd(MapTransform):
    """Writes ``<case>_preview.png`` beside the mask; :func:`write_page` collects the pictures of all cases.

    Each plane is cut where the mask is largest. The first axis (right or anterior) is to the right.

    Args:
        keys: of the decoded masks in the geometry of the original image, see :func:`class_volumes`.
        label_coding, class_names, output_dir, root: see :class:`~scripts.inference.Outcomes`.

    Raises:
        DataError: when matplotlib is not installed.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_coding: LabelCoding,
        output_dir: str | Path,
        class_names: Sequence[str] | None = None,
        root: str | Path = "",
    ) -> None:
        super().__init__(keys)
        try:  # here, since the command starts earlier without it
            from scripts.pictures import panels
        except ImportError as error:
            raise DataError("preview needs matplotlib: pip install matplotlib, or set preview to false.") from error
        self.panels: Any = panels
        self.class_names = checked_names(class_names, label_coding)
        self.label_coding = label_coding
        self.output_dir = Path(output_dir)
        self.root = root

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            mask = data[key]
            image = mask.meta["filename_or_obj"]
            volumes = class_volumes(mask, self.label_coding)
            said = ", ".join(volume_text(name, ml) for name, (_, ml) in zip(self.class_names, volumes))
            path = output_path(image, "preview", output_dir=self.output_dir, root=self.root, ending=".png")
            with replacing(path) as temporary:
                temporary.write_bytes(self._draw(image, mask, title=f"{name_of(image, self.root)}: {said}"))
        return dict(data)

    def _draw(self, path: str, mask: MetaTensor, *, title: str) -> bytes:
        panels = self.panels
        upright: Any = Orientation("RAS", labels=None)
        # The voxels that the network saw are normalized and resampled; the file's own are shown.
        image = Compose([LoadImage(reader=NiftiReader), EnsureChannelFirst(), upright])(path)[0].numpy()
        values = upright(mask).as_tensor().cpu().numpy()
        count = self.label_coding.num_classes
        classes = values > 0 if self.label_coding.regions else np.stack([values[0] == c + 1 for c in range(count)])
        spacing = np.linalg.norm(upright(mask).affine[:3, :3].numpy(), axis=0)
        figure = panels.new_figure(3 * panels.PANEL_WIDTH + 0.5, panels.PANEL_WIDTH + 0.6)
        figure.suptitle(title, fontsize=10)
        colours = class_colours(len(classes))
        for axes, (name, (across, up, cut)) in zip(figure.subplots(1, 3), PLANES.items()):
            areas = classes.any(axis=0).sum(axis=(across, up))
            index = int(areas.argmax()) if areas.any() else image.shape[cut] // 2
            plane = image.take(index, axis=cut)
            panels.draw_image(
                axes,
                plane,
                aspect=spacing[up] / spacing[across],
                window=panels.grey_window(plane),
                title=f"{name}, slice {index}",
            )
            for voxels, colour in zip(classes, colours):
                line = {"colour": colour, "style": "solid"}
                panels.draw_contour(axes, voxels.take(index, axis=cut), level=0.5, line=line)
        return panels.png(figure)


def write_page(folder: Path, class_names: Sequence[str]) -> None:
    """Writes ``preview.html``, the page of the pictures that are in ``folder``, whichever run has drawn them."""
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{ENDING}"))
    colours = zip(class_names, class_colours(len(class_names)))
    legend = " ".join(f'<b style="color:{colour}">&#9632;</b> {escape(name)}' for name, colour in colours)
    body = "\n".join(
        f'<h2>{escape(path.removesuffix(ENDING))}</h2>\n<img src="{quote(path)}" alt="" loading="lazy">'
        for path in pictures
    )
    with replacing(folder / PAGE) as temporary:
        temporary.write_text(
            '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Masks</title>'
            f"<style>{STYLE}</style></head>\n<body>\n<h1>{len(pictures)} masks</h1>\n<p>{legend}</p>\n{body}\n"
            "</body>\n</html>\n",
            encoding="utf-8",
        )
