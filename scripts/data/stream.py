"""Stream: an endless sequence of random crops in which draw n depends only on the seed and n.

Neither the number of data workers, nor the batch size, nor what was drawn before changes draw n, so a run can be
repeated and continued exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.data import DataLoader
from monai.data import Dataset as MonaiDataset
from torch.utils.data import Dataset

from scripts.ranks import rank, world_size

# Separates the random numbers that order the cases from those that augment them.
ORDER, AUGMENT = 0, 1
# Key of a draw under which the image file is, for messages; the transforms leave no trace of it on the image.
FILE = "file"


class SeededDraws(Dataset):
    """An endless stream over ``dataset``: (seed, n) determines the case and the random transforms of draw n.

    A draw carries the path of its image as "file", of several modalities the first, where ``dataset`` was made from
    paths. The cases are drawn without replacement: every ``len(dataset)`` draws form a pass in which each occurs once.

    Args:
        dataset: a :class:`~scripts.data.VolumeDataset`, or MONAI's own with a ``Compose``.
        seed: together with ``stream`` fixes everything.
        stream: tells streams of one run apart.
    """

    def __init__(self, dataset: MonaiDataset, *, seed: int, stream: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.stream = stream

    def case_of(self, n: int) -> int:
        """Position in the dataset of the case of draw ``n``."""
        pass_number, position = divmod(n, len(self.dataset))
        order = np.random.default_rng([self.seed, self.stream, ORDER, pass_number])
        return int(order.permutation(len(self.dataset))[position])

    def __getitem__(self, n: int) -> dict | list[dict]:
        entropy = np.random.SeedSequence([self.seed, self.stream, AUGMENT, n]).generate_state(1)
        self.dataset.transform.set_random_state(seed=int(entropy[0]))
        case = self.case_of(n)
        drawn = self.dataset[case]
        # Transforms that may take several crops return a list of them.
        if isinstance(drawn, list):
            return [{**crop, **self._file(case)} for crop in drawn]
        return {**drawn, **self._file(case)}

    def _file(self, case: int) -> dict[str, str]:
        image = self.dataset.data[case]["image"]
        first = image[0] if isinstance(image, (list, tuple)) else image
        return {FILE: str(first)} if isinstance(first, (str, Path)) else {}


@dataclass
class DrawBatches:
    """Batch sampler: batch i holds draws i * size ... (i + 1) * size - 1, without end.

    Of several processes each has a share of ``batch_size`` draws in every batch of all: process r of w the draws
    (i * w + r) * size ... (i * w + r + 1) * size - 1.

    Args:
        batch_size: draws in a batch of this process.
        start: number of the first batch, for a run that is continued.
        rank: number r of this process.
        ranks: number w of processes.
    """

    batch_size: int
    start: int = 0
    rank: int = 0
    ranks: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        share = self.start * self.ranks + self.rank
        while True:
            yield list(range(share * self.batch_size, (share + 1) * self.batch_size))
            share += self.ranks


def crop_stream(
    dataset: MonaiDataset,
    *,
    batch_size: int,
    seed: int,
    stream: int,
    num_workers: int = 0,
    worker_timeout: float = 600,
) -> DataLoader | None:
    """An endless loader of seeded random crops; with several processes, of this process's share.

    Args:
        dataset: see :class:`SeededDraws`.
        batch_size: crops in a batch of this process.
        seed: of the run.
        stream: tells the crops of a run apart: labeled 0, unlabeled 1, pseudo-labeled 4.
        num_workers: data worker processes; 0 loads in the training process.
        worker_timeout: seconds after which a worker that does not deliver is an error; 0 waits for ever.

    Returns:
        The loader, or None when there is nothing to draw: no case, or a batch size of 0.
    """
    if batch_size < 1 or len(dataset) == 0:
        return None
    draws = SeededDraws(dataset, seed=seed, stream=stream)
    return DataLoader(
        draws,
        batch_sampler=DrawBatches(batch_size, rank=rank(), ranks=world_size()),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        timeout=worker_timeout if num_workers > 0 else 0,
    )
