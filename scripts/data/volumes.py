"""Volumes: preprocessed cases in memory, or beyond that in memory-mapped files of which a draw reads the crop only."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, get_track_meta, set_track_meta
from monai.transforms import Compose, RandCropByPosNegLabeld, RandomizableTrait, RandSpatialCropd, Transform

from scripts.files import replacing
from scripts.ranks import world_size

from .problems import DataError
from .transforms import RandomCropd

# Random transforms that leave what they are given as it is, so that they may be given the cache itself.
CROPS = (RandomCropd, RandSpatialCropd, RandCropByPosNegLabeld)


class VolumeDataset(CacheDataset):
    """MONAI's CacheDataset for random crops, with files for the cases that memory has no room for.

    The deterministic transforms of a case run once: before the start for those in memory, at the first draw for the
    others, whose result goes to a file. Later draws map that file and read the crop only; what memory is free keeps
    the files that are used most. The processes of one machine share them. They go with the process.

    Random transforms see plain tensors, since to follow the geometry of a crop doubles their time.

    Args:
        data: cases.
        transform: deterministic transforms, then the crop, then others.
        cache_rate: share of the cases, the first ones, that lie in memory.
        folder: for the files.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose, *, folder: str | Path, cache_rate: float = 1.0
    ) -> None:
        # Processes that torchrun started have one parent.
        owner = os.getppid() if world_size() > 1 else os.getpid()
        root = Path(folder)
        self.folder = root / f"{socket.gethostname()}-{owner}"
        self.first_random = transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        super().__init__(data, transform, cache_rate=cache_rate, progress=False)
        if self.cache_num < len(data):
            # A run has its folder for itself: files of others of this machine are those of killed processes.
            for other in set(root.glob(f"{socket.gethostname()}-*")) - {self.folder}:
                shutil.rmtree(other, ignore_errors=True)
            weakref.finalize(self, _remove, self.folder, os.getpid())

    def _transform(self, index: int) -> Any:
        item, device = (self._cache[index], None) if index < self.cache_num else self._mapped(index)
        steps = self.transform.transforms  # len() of MONAI's Compose would give them new random states
        start = len(steps) if self.first_random is None else self.first_random
        with _plain_tensors():
            if start < len(steps) and isinstance(steps[start], CROPS):
                item = self.transform(item, start=start, end=start + 1)
                start += 1
            # A copy, of the crop if possible: the others may change what they are given.
            item = [_copied(part, device) for part in item] if isinstance(item, list) else _copied(item, device)
            return self.transform(item, start=start)

    def _mapped(self, index: int) -> tuple[dict[str, Any], torch.device]:
        """The deterministic part of a case, its tensors mapped from a file and not yet read, and where they belong."""
        path = self.folder / f"{index}.pt"
        if not path.exists():
            item = self._load_cache_item(index)
            device = next(value.device for value in item.values() if isinstance(value, torch.Tensor))
            try:
                with replacing(path, ending=".pt") as temporary:
                    torch.save((_copied(item, "cpu"), str(device)), temporary)
            except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
                raise DataError(
                    f"{path} cannot be written ({error}): free some disk, choose another output_dir, or keep more "
                    "volumes in memory by cache_rate."
                ) from error
        item, device = torch.load(path, mmap=True, weights_only=True)
        return item, torch.device(device)


def _copied(item: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """``item`` with plain tensors of its own, which hold no more than they show, on ``device`` or where they are."""
    return {
        key: (
            value.as_subclass(torch.Tensor).to(device or value.device, copy=True, memory_format=torch.contiguous_format)
            if isinstance(value, torch.Tensor)
            else value
        )
        for key, value in item.items()
    }


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI's transforms return plain tensors meanwhile."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a data worker, which is a copy of its parent
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process has files there
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
