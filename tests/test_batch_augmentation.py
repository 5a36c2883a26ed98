"""Tests of scripts/data/batch_augmentation.py: each change of intensity against its formula, crop by crop."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from scripts.data import RandomIntensity

OFF = {"gamma": 0, "brightness": 0, "contrast": 0, "bias": 0, "noise": 0, "blur": 0}
SHAPE = (3, 2, 12, 10, 14)


def crops(seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=SHAPE), dtype=torch.float32)


def changed(image, seed=0, **strengths):
    torch.manual_seed(seed)
    return RandomIntensity(**{**OFF, "prob": 1, **strengths})(image)


def test_nothing_is_changed_without_probability_or_strength():
    image = crops()
    assert torch.equal(changed(image, prob=0, gamma=1.0, noise=1.0), image) and torch.equal(changed(image), image)
    assert len(RandomIntensity()(image[:0])) == 0


def test_autocast_does_not_round_the_image():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = changed(crops(), bias=0.2, blur=1.0)
    torch.testing.assert_close(result, changed(crops(), bias=0.2, blur=1.0))


def test_brightness_is_one_shift_per_crop():
    shift = changed(crops(), brightness=0.4) - crops()
    values = shift.flatten(1)
    assert (values.std(1) < 1e-6).all() and len({round(v, 5) for v in values[:, 0].tolist()}) == 3
    assert values.abs().max() <= 0.4


def test_contrast_scales_about_the_mean():
    image = crops()
    result = changed(image, contrast=0.5)
    factor = (result - image.mean((2, 3, 4), keepdim=True)) / (image - image.mean((2, 3, 4), keepdim=True))
    assert (factor.flatten(1).std(1) < 1e-3).all() and 0.5 <= factor.min() <= factor.max() <= 1.5


def test_gamma_keeps_range_and_order():
    image = crops()
    result = changed(image, gamma=0.7)
    for before, after in zip(image.flatten(0, 1), result.flatten(0, 1)):
        assert torch.equal(before.flatten().argsort(), after.flatten().argsort())
        torch.testing.assert_close(
            torch.stack([after.amin(), after.amax()]), torch.stack([before.amin(), before.amax()])
        )
    low, high = image.amin((2, 3, 4)), image.amax((2, 3, 4))
    share = (image[0, 0] - low[0, 0]) / (high[0, 0] - low[0, 0])
    new = (result[0, 0] - low[0, 0]) / (high[0, 0] - low[0, 0])
    inner = (share > 0.05) & (share < 0.95)
    power = (new[inner].log() / share[inner].log()).mean()
    assert np.exp(-0.7) <= power <= np.exp(0.7) and abs(power - 1) > 1e-3


def test_bias_is_a_smooth_positive_factor():
    image = crops().abs() + 1
    low = image.amin((2, 3, 4), keepdim=True)
    field = ((changed(image, bias=0.3) - low) / (image - low)).nan_to_num(1.0)[0, 0].numpy()
    inner = field[image[0, 0].numpy() > low[0, 0].item() + 1e-2]
    assert inner.min() > 0 and inner.std() > 0.01
    slopes = np.abs(np.diff(np.log(np.clip(field, 1e-3, None)), axis=0))
    assert np.median(slopes) < 0.3


def test_blur_is_a_gaussian_of_each_crops_own_width():
    image = crops()
    torch.manual_seed(3)
    torch.rand(3)  # which crops are chosen
    sigma = torch.rand(3) * 1.2 + 1e-3
    result = changed(image, seed=3, blur=1.2)
    for crop, after, width in zip(image, result, sigma.tolist()):
        expected = [gaussian_filter(c, width, mode="nearest", truncate=4 / width) for c in crop.numpy()]
        np.testing.assert_allclose(after.numpy(), np.stack(expected), atol=1e-4)


def test_noise_has_at_most_the_deviation_asked_for():
    difference = changed(torch.zeros(3, 1, 24, 24, 24), noise=0.5).flatten(1).std(1)
    assert (difference <= 0.51).all() and difference.max() > 0.05


def test_the_seed_of_torch_alone_decides_and_the_type_stays():
    image = crops().half()
    first, second = (changed(image, seed=4, gamma=0.5, noise=0.1, bias=0.2, blur=1.0) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float16
    assert not torch.equal(first, changed(image, seed=5, gamma=0.5, noise=0.1, bias=0.2, blur=1.0))


@pytest.mark.parametrize("option", [{"gamma": -1}, {"contrast": 1}, {"prob": 1.5}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        RandomIntensity(**option)
