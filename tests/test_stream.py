"""Tests of scripts/data/stream.py: draw n is the same whatever was drawn before, by whom, and in which batch."""

from __future__ import annotations

import gc
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import ROOT, SHAPES, las, save, small, write_dataset
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd

from scripts.data import crop_stream
from scripts.data.stream import DrawBatches, SeededDraws

CASES = 5
EXTENT, PATCH = 8, 4


def case_images() -> list[dict[str, torch.Tensor]]:
    """Volumes whose voxels all differ, also between cases, so that a crop tells its case, place and orientation."""
    voxels = torch.arange(CASES * EXTENT**3, dtype=torch.float32).reshape(CASES, 1, EXTENT, EXTENT, EXTENT)
    return [{"image": image, "label": image.clone()} for image in voxels]


def dataset(kind: type = CacheDataset, cases: int = CASES) -> Dataset:
    keys = ["image", "label"]
    transform = Compose(
        [
            RandRotate90d(keys, prob=0.75, spatial_axes=(0, 1)),
            RandFlipd(keys, prob=0.5, spatial_axis=2),
            RandSpatialCropd(keys, (PATCH,) * 3, random_size=False),
        ]
    )
    options = {"progress": False} if kind is CacheDataset else {}
    return kind(case_images()[:cases], transform, **options)


def stream(*, batch_size: int = 1, seed: int = 3, number: int = 0, num_workers: int = 0, **options):
    return crop_stream(dataset(**options), batch_size=batch_size, seed=seed, stream=number, num_workers=num_workers)


def draws(count: int, **options) -> torch.Tensor:
    """The first ``count`` images of a stream, (count, 1, H, W, D), whatever its batches."""
    batch_size = options.get("batch_size", 1)
    batches = islice(iter(stream(**options)), -(-count // batch_size))
    return torch.cat([batch["image"].as_subclass(torch.Tensor) for batch in batches])[:count]


def case_of(images: torch.Tensor) -> list[int]:
    return [int(image.min()) // EXTENT**3 for image in images]


# --- what draw n depends on ---


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_draws_do_not_depend_on_the_batch_size(batch_size):
    assert torch.equal(draws(12, batch_size=batch_size), draws(12))


def test_draws_do_not_depend_on_the_number_of_workers():
    assert torch.equal(draws(12, batch_size=2, num_workers=2), draws(12, batch_size=2))
    gc.collect()  # ends the persistent workers now rather than at exit


def test_draws_do_not_depend_on_caching():
    assert torch.equal(draws(12, kind=Dataset), draws(12, kind=CacheDataset))


def test_draws_do_not_depend_on_what_was_drawn_before_or_on_global_random_numbers():
    expected = draws(8)
    one = SeededDraws(dataset(), seed=3, stream=0)
    for n in (7, 2, 2, 5):
        torch.manual_seed(n)
        np.random.seed(n)
        assert torch.equal(one[n]["image"], expected[n])


def test_a_stream_that_is_iterated_again_starts_again():
    loader = stream(batch_size=2)
    first, second = (torch.cat([batch["image"] for batch in islice(iter(loader), 4)]) for _ in range(2))
    assert torch.equal(first, second)


def test_another_seed_and_another_stream_give_other_cases_and_other_crops():
    base = draws(2 * CASES)
    for other in (draws(2 * CASES, seed=4), draws(2 * CASES, number=1)):
        assert case_of(other) != case_of(base)
    # With a single case the order is no difference.
    base = draws(8, cases=1)
    for other in (draws(8, cases=1, seed=4), draws(8, cases=1, number=1)):
        assert not torch.equal(other, base)


def test_seed_and_stream_are_not_interchangeable():
    for cases in (1, CASES):
        assert not torch.equal(draws(8, seed=1, number=0, cases=cases), draws(8, seed=0, number=1, cases=cases))


# --- order ---


def test_every_case_occurs_once_a_pass_and_passes_are_ordered_differently():
    cases = case_of(draws(6 * CASES, batch_size=2))
    passes = [tuple(cases[first : first + CASES]) for first in range(0, len(cases), CASES)]
    assert all(sorted(one) == list(range(CASES)) for one in passes)
    assert len(set(passes)) > 1


def test_draws_of_one_case_differ_from_pass_to_pass():
    images = draws(10, cases=1)
    assert len({tuple(image.flatten().tolist()) for image in images}) > 5


def test_batches_may_start_at_any_number():
    assert list(islice(DrawBatches(2), 3)) == [[0, 1], [2, 3], [4, 5]]
    assert list(islice(DrawBatches(2, start=5), 2)) == [[10, 11], [12, 13]]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "cases": 0}], ids=["no-batch", "no-case"])
def test_nothing_to_draw_is_no_stream(options):
    assert stream(**options) is None


def test_a_single_case_fills_a_batch_of_two():
    batch = next(iter(stream(batch_size=2, cases=1)))
    assert batch["image"].shape == (2, 1, PATCH, PATCH, PATCH)


# --- crops ---


def test_image_and_label_of_a_draw_undergo_the_same_transforms():
    for batch in islice(iter(stream(batch_size=2)), 10):
        assert torch.equal(batch["image"], batch["label"])


@pytest.mark.parametrize("patch", [[16, 16, 16], [16, 32, 16]], ids=["within", "larger-than-a-volume"])
def test_crops_of_train_json_have_the_patch_shape_and_their_labels_lie_on_them(tmp_path, patch):
    folder = write_dataset(tmp_path / "data")
    for number, shape in enumerate(SHAPES):  # an image is its own label, without any symmetry
        noise = np.random.default_rng(number).integers(0, 2, shape).astype(np.uint8)
        for kind in ("images", "labels"):
            save(noise, las((1, 1, 1)), folder / kind / f"training_{number}.nii.gz")
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "train.json")
    parser.update(small(folder, tmp_path, patch_size=patch))
    for batch in islice(iter(parser.get_parsed_content("train#dataloader")), 6):
        assert batch["image"].shape == batch["label"].shape == (2, 1, *patch)
        # The image is normalised: its foreground is above 0, its background below, the padding 0.
        assert torch.equal((batch["image"] > 0).float(), batch["label"])
        assert batch["label"].any()


# --- what the shipped configs cache ---


def cache(tiny, folder, **changes) -> dict[str, torch.Tensor]:
    """The first labeled case of configs/train.json as it lies in the cache."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    parser.update(small(tiny, folder, **changes))
    return parser.get_parsed_content("train#dataset")._cache[0]


def test_labels_are_cached_in_two_bytes_and_images_in_four(tiny, tmp_path):
    case = cache(tiny, tmp_path)
    assert {key: case[key].dtype for key in ("image", "label")} == {"image": torch.float32, "label": torch.int16}
    assert case["label"].unique().tolist() == [0, 1]


def test_volumes_are_cached_on_the_chosen_device(tiny, tmp_path):
    case = cache(tiny, tmp_path, cache_device="meta")
    assert {case[key].device.type for key in ("image", "label")} == {"meta"}
