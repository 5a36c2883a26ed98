"""Scale: the sizes that the benchmarks run at: for one CPU core, for a GPU, and the smallest that go through it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Scale:
    """Sizes of every group.

    Attributes:
        maps: volume of the distance maps.
        method: crop of DBiSL's iteration against DTC's.
        method_filters: base filters of it.
        training: crop of the trainer's iteration.
        training_filters: base filters of it, a row for each.
        windows: window of inference.
        volumes: of inference, by stride.
        curve: volumes of inference at overlap 0.5, for the growth of time and memory.
        inference_filters: base filters of it.
        cases: scans that are cached.
        streamed: scans of which a tenth is in memory.
        files: volumes that preflight reads.
        multiplied: rows and columns of the matrices whose product is the roofline.
        training_overrides: config ids of the trainer's iteration.
    """

    maps: Shape = (112, 112, 80)
    method: Shape = (48, 48, 32)
    method_filters: int = 16
    training: Shape = (64, 48, 32)
    training_filters: tuple[int, ...] = (8, 16)
    windows: Shape = (64, 48, 32)
    volumes: dict[Shape, Shape] = field(
        default_factory=lambda: {(18, 18, 4): (82, 66, 48), (32, 24, 16): (128, 72, 64)}
    )
    curve: tuple[Shape, ...] = ((64, 48, 32), (128, 72, 64), (128, 128, 128), (192, 192, 96))
    inference_filters: int = 8
    cases: int = 80
    streamed: int = 56
    files: int = 1000
    multiplied: int = 2048
    training_overrides: dict[str, Any] = field(default_factory=dict)


SCALES = {
    "cpu": Scale(),
    # The papers' patch and strides, on a volume of the left atrium's size, everything cached on the device.
    "gpu": Scale(
        method=(112, 112, 80),
        training=(112, 112, 80),
        training_filters=(16,),
        windows=(112, 112, 80),
        volumes={(18, 18, 4): (184, 140, 88), (56, 56, 40): (184, 140, 88)},
        curve=((112, 112, 80), (184, 140, 88), (256, 256, 128), (512, 512, 128)),
        inference_filters=16,
        multiplied=8192,
        training_overrides={"cache_device": "cuda"},
    ),
    "small": Scale(
        maps=(16, 16, 16),
        method=(16, 16, 16),
        method_filters=2,
        training=(16, 16, 16),
        training_filters=(2,),
        windows=(16, 16, 16),
        volumes={(8, 8, 8): (24, 24, 16)},
        curve=((16, 16, 16),),
        inference_filters=2,
        cases=2,
        streamed=4,
        files=4,
        multiplied=64,
    ),
}
