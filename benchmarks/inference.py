"""Inference: whole volumes through the bundle's inferer and predictor against a plain loop over the same windows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import Dataset
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd
from torch import nn

from benchmarks.measure import medians, peak_megabytes, peak_on_gpu, row
from benchmarks.scale import SCALES, Scale
from scripts.data import NiftiReader, SpacingOfKeysd
from scripts.inference import CaseLoader, Predictor, TolerantDataset, window_overlap
from scripts.networks import DualTaskVNet

PATCH = SCALES["cpu"].windows
WINDOWS = 4
BLOCKED = ("mlflow", "matplotlib", "pandas", "sklearn")


def network(*, channels_last: bool, filters: int = 8, device: torch.device | str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    format_ = torch.channels_last_3d if channels_last else torch.contiguous_format
    made: Any = DualTaskVNet(base_filters=filters).eval()
    return made.to(device=device, memory_format=format_)


@torch.no_grad()
def plain(net: nn.Module, image: torch.Tensor, stride: Sequence[int], patch: Sequence[int] = PATCH) -> np.ndarray:
    """One window at a time, default memory format, numpy accumulation; the mean probability."""
    total, count = np.zeros(image.shape[2:], np.float32), np.zeros(image.shape[2:], np.float32)
    windows: Any = dense_patch_slices(image.shape[2:], patch, stride)
    for window in windows:
        total[window] += net(image[(..., *window)])[0, 0].cpu().numpy()
        count[window] += 1
    return total / count


@torch.no_grad()
def ours(
    predictor: nn.Module, image: torch.Tensor, stride: Sequence[int], patch: Sequence[int] = PATCH
) -> torch.Tensor:
    """As configs/inference.json does it."""
    inferer: Any = SlidingWindowInferer(patch, WINDOWS, window_overlap(patch, stride))
    return inferer(image, predictor)


def memory(shape: Sequence[int]) -> tuple[Callable, Callable]:
    """For ``peak_megabytes``, at overlap 0.5."""
    predictor = Predictor([network(channels_last=True)])
    return (lambda: torch.randn(1, 1, *shape)), partial(ours, predictor, stride=(32, 24, 16))


def rows(repeats: int, *, scale: Scale = SCALES["cpu"], device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """A row for each stride, for both decoders and for one."""
    made: dict[str, Any] = {"filters": scale.inference_filters, "device": device}
    first, other, found = network(channels_last=False, **made), network(channels_last=True, **made), []
    for stride, shape in scale.volumes.items():
        image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        options: dict[str, dict[str, Any]] = {
            "both decoders": {},
            "one decoder": {"decoders": "phi"},
            "both, distance map too": {"maps": ["distance"]},
        }
        given: dict[str, Any] = {"image": image, "stride": stride, "patch": scale.windows}
        works: dict[str, Callable] = {"plain": partial(plain, first, **given)}
        for name, arguments in options.items():
            works[name] = partial(ours, Predictor([other], **arguments), **given)
        expected = works["plain"]()
        times = medians(works, repeats)
        for name in options:
            probability = works[name]()[0, 0].cpu().numpy()
            clear = np.abs(expected - 0.5) > 1e-5
            unlike = int(((probability > 0.5) != (expected > 0.5))[clear].sum())
            found.append(
                row(
                    f"inference of {'x'.join(map(str, shape))}, stride {stride}, {name}",
                    times[name],
                    "plain loop, both decoders",
                    times["plain"],
                    accuracy="another network" if name == "one decoder" else f"{unlike} voxels of the mask differ",
                    peak_mb=peak(works[name], shape, scale, image) if name == "both decoders" else None,
                )
            )
    return found


def volume_rows(*, scale: Scale = SCALES["cpu"], device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """How time and peak memory grow with the volume, at overlap 0.5; each is measured once."""
    made: dict[str, Any] = {"filters": scale.inference_filters, "device": device}
    first, predictor = network(channels_last=False, **made), Predictor([network(channels_last=True, **made)])
    found = []
    for shape in scale.curve:
        given: dict[str, Any] = {
            "image": torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)).to(device),
            "stride": [extent // 2 for extent in scale.windows],
            "patch": scale.windows,
        }
        times = medians({"plain": partial(plain, first, **given), "ours": partial(ours, predictor, **given)}, 1)
        found.append(
            row(
                f"inference of {'x'.join(map(str, shape))}, overlap 0.5",
                times["ours"],
                "plain loop, both decoders",
                times["plain"],
                peak_mb=peak(partial(ours, predictor, **given), shape, scale, given["image"]),
            )
        )
    return found


def peak(work: Callable[[], Any], shape: Sequence[int], scale: Scale, image: torch.Tensor) -> float | None:
    """Of inference in MB: on the GPU, or with the CPU's sizes in a process of its own."""
    if image.device.type == "cuda":
        return peak_on_gpu(work)
    return peak_megabytes("benchmarks.inference", f"memory({shape})") if scale == SCALES["cpu"] else None


class Beside(nn.Module):
    """A network on a device beside the processor, which computes for ``seconds`` and needs no processor meanwhile."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def overlap_rows(repeats: int, *, shape: Sequence[int] = (192, 144, 88), count: int = 6) -> list[dict[str, Any]]:
    """Volumes of a folder read ahead against read in turn, by the wall: network beside and on the processor."""
    steps: Any = [
        LoadImaged("image", reader=NiftiReader),
        EnsureChannelFirstd("image"),
        SpacingOfKeysd("image", (1.25,) * 3),
        NormalizeIntensityd("image"),
    ]
    found = []
    with TemporaryDirectory() as folder:
        cases = [{"image": f"{folder}/{number}.nii.gz"} for number in range(count)]
        for number, case in enumerate(cases):
            voxels = np.random.default_rng(number).integers(0, 1000, shape).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), case["image"])
        dataset = TolerantDataset(Dataset(cases, Compose(steps)))
        begun = time.perf_counter()
        assert "image" in dataset[0]
        reading = time.perf_counter() - begun
        networks: dict[str, nn.Module] = {
            "beside the processor": Beside(reading),
            "on the processor": network(channels_last=True),
        }
        for place, net in networks.items():

            def work(ahead: bool, net: nn.Module = net, beside: bool = place.startswith("beside")) -> None:
                for case in CaseLoader(dataset, ahead=ahead):
                    net(case["image"]) if beside else ours(net, case["image"].as_tensor(), stride=PATCH)

            times: dict[bool, list[float]] = {True: [], False: []}
            for ahead in [True, False] * repeats:
                begun = time.perf_counter()
                with torch.no_grad():
                    work(ahead)
                times[ahead].append(time.perf_counter() - begun)
            found.append(
                row(
                    f"{count} volumes, network {place}, read ahead",
                    float(np.median(times[True])),
                    "read in turn",
                    float(np.median(times[False])),
                )
            )
    return found


def start(*, blocked: Sequence[str] = ()) -> float:
    """Processor seconds until MONAI's bundle commands and all that inference uses are imported."""
    code = (
        "import sys, time, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {tuple(blocked)}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import monai.bundle, scripts.data, scripts.inference, scripts.networks, scripts.training\n"
        "print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    return float(done.stdout.split()[-1])


def start_rows(repeats: int) -> list[dict[str, Any]]:
    """Imports where only requirements-inference.txt is installed, against all requirements."""
    pairs = [(start(blocked=BLOCKED), start()) for _ in range(repeats)]
    lean, full = np.median(pairs, axis=0)
    return [row("imports of inference, its own requirements alone", lean, "all requirements installed", full)]
