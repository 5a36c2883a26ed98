"""Tests of scripts/data/label_coding.py: hand-written tables of encoding and decoding, thresholds, errors."""

import pytest
import torch

from scripts.data import LabelCoding

BRATS = [[1, 2, 4], [1, 4], [4]]


def line(values, dtype=torch.float32):
    """Return one label map or one channel per row of `values`: (1, C, n, 1, 1)."""
    return torch.tensor(values, dtype=dtype)[None, :, :, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize(
    "num_classes, regions, expected",
    [
        (1, None, [[0, 1, 0, 0, 0]]),
        (3, None, [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]),
        (3, BRATS, [[0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 1]]),
        (2, [[2], [0, 3]], [[0, 0, 1, 0, 0], [1, 0, 0, 1, 0]]),
    ],
    ids=["binary", "exclusive", "nested-regions", "regions-in-any-order"],
)
def test_label_values_become_the_channels_of_the_table(num_classes, regions, expected, dtype):
    channels = LabelCoding(num_classes, regions).encode(line([[0, 1, 2, 3, 4]], dtype))
    assert channels.dtype == torch.float32
    assert torch.equal(channels, line(expected))


def test_encoding_keeps_samples_and_voxels_in_place():
    label = torch.randint(0, 4, (3, 1, 4, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    channels = LabelCoding(3).encode(label)
    assert channels.shape == (3, 3, 4, 5, 6)
    for c in range(3):
        assert torch.equal(channels[:, c] == 1, label[:, 0] == c + 1)


@pytest.mark.parametrize(
    "probability, expected",
    [
        ([0.0, 0.0], 0),
        ([0.5, 0.0], 0),
        ([0.5, 0.5], 0),
        ([0.5001, 0.0], 1),
        ([0.0, 0.5001], 2),
        ([0.6, 0.7], 2),
        ([0.7, 0.6], 1),
        ([0.8, 0.8], 1),
        ([0.4, 0.45], 0),
        ([0.5, 0.5001], 2),
    ],
)
def test_a_voxel_is_background_up_to_one_half_and_the_largest_class_above(probability, expected):
    coding, probabilities = LabelCoding(2), line([[p] for p in probability])
    decoded = coding.decode(probabilities)
    assert torch.equal(coding.harden(probabilities), coding.encode(decoded))
    assert decoded.dtype == torch.uint8
    assert decoded.tolist() == [[[[[expected]]]]]


@pytest.mark.parametrize("probability, expected", [(0.0, 0), (0.5, 0), (0.5001, 1), (1.0, 1)])
def test_one_class_is_decoded_by_threshold(probability, expected):
    assert LabelCoding(1).decode(line([[probability]])).tolist() == [[[[[expected]]]]]


def test_overlapping_regions_are_decoded_channel_by_channel():
    decoded = LabelCoding(3, BRATS).decode(line([[0.9, 0.5, 0.8], [0.6, 0.5001, 0.0], [0.7, 0.1, 0.5]]))
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, line([[1, 0, 1], [1, 1, 0], [1, 0, 0]], torch.uint8))


def test_decoding_an_encoded_label_gives_the_label_back():
    label = torch.randint(0, 4, (2, 1, 3, 4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    coding = LabelCoding(3)
    assert torch.equal(coding.decode(coding.encode(label)), label)


@pytest.mark.parametrize(
    "num_classes, regions, expected",
    [
        (1, None, [0, 1]),
        (3, None, [0, 1, 2, 3]),
        (3, BRATS, [0, 1, 2, 4]),
        (2, [[7], [3, 7]], [0, 3, 7]),
        (1, [[0, 2]], [0, 2]),
    ],
)
def test_values_are_all_that_a_label_file_may_hold(num_classes, regions, expected):
    assert LabelCoding(num_classes, regions).values == expected


@pytest.mark.parametrize("num_classes", [0, -1])
def test_fewer_than_one_class_is_refused_with_the_number(num_classes):
    with pytest.raises(ValueError, match=f"num_classes is {num_classes}"):
        LabelCoding(num_classes)


@pytest.mark.parametrize("names", [["a"], ["background", "a", "b"], "ab"])
def test_names_that_are_not_one_for_each_class_are_refused(names):
    with pytest.raises(ValueError, match="class_names is .* for each of the 2 foreground class"):
        LabelCoding(2, class_names=names)
    LabelCoding(2, class_names=["a", "b"])


@pytest.mark.parametrize("regions", [[], [[1]], [[1], [2], [3]]])
def test_a_number_of_regions_that_is_not_that_of_the_classes_is_refused_with_both(regions):
    with pytest.raises(ValueError, match=rf"regions has {len(regions)} entries"):
        LabelCoding(2, regions)
