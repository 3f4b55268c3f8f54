import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_plugin import SimMIMMaskGenerator
from simmim_plugin.masking import masked_count


def units_of(mask: np.ndarray, unit: int) -> np.ndarray:
    """Value of each unit; fails if a unit is not all one value."""
    rows, columns = (math.ceil(side / unit) for side in mask.shape)
    values = np.zeros((rows, columns), dtype=int)
    for i in range(rows):
        for j in range(columns):
            found = np.unique(mask[i * unit : (i + 1) * unit, j * unit : (j + 1) * unit])
            assert len(found) == 1
            values[i, j] = found[0]
    return values


def test_published_setting_masks_120_of_196_tokens():
    generator = SimMIMMaskGenerator(input_size=224)
    np.random.seed(0)
    masks = [generator({})['mask'] for _ in range(50)]
    for mask in masks:
        assert mask.shape == (14, 14) and mask.dtype == np.uint8
        assert mask.sum() == 120
        assert units_of(mask, 2).sum() == 30
    assert len({mask.tobytes() for mask in masks}) == 50
    # Every token is masked about as often: mean 30 / 49, six standard errors of 50 draws.
    share = np.mean(masks)
    assert share == pytest.approx(120 / 196)
    assert np.abs(np.mean(masks, axis=0) - share).max() < 6 * math.sqrt(share * (1 - share) / 50)


@settings(deadline=None, max_examples=150)
@given(
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    patch=st.sampled_from([4, 7, 16]),
    unit=st.integers(1, 5),
    percent=st.integers(0, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_count_for_any_size(h, w, patch, unit, percent, seed):
    np.random.seed(seed)
    generator = SimMIMMaskGenerator(percent / 100, patch * unit, patch, (h * patch, w * patch))
    mask = generator({})['mask']
    assert mask.shape == (h, w)
    units = units_of(mask, unit)
    assert units.sum() == math.ceil(Fraction(percent, 100) * units.size)
    np.random.seed(seed)
    assert (generator({})['mask'] == mask).all()


def test_count_is_free_of_rounding_residue():
    assert math.ceil(0.07 * 100) == 8  # what plain floating point says
    assert masked_count(0.07, 100) == 7
    assert masked_count(0.6, 49) == 30


@pytest.mark.parametrize(
    'image', [torch.zeros(5, 64, 96), np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96)), Image.new('L', (96, 64))]
)
def test_takes_the_size_of_the_image(image):
    assert SimMIMMaskGenerator()({'img': image})['mask'].shape == (4, 6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(mask_ratio=1.2), r'mask_ratio=1.2 is outside \[0, 1\]'),
        (dict(mask_ratio=-0.1), r'mask_ratio=-0.1 is outside'),
        (dict(mask_patch_size=40), r'mask_patch_size=40 must be a positive multiple of model_patch_size=16, e.g. 32'),
        (dict(mask_patch_size=8), r'mask_patch_size=8 must be .* e.g. 16'),
        (dict(model_patch_size=0), r'model_patch_size=0 must be'),
        (dict(input_size=200), r'200 x 200 px: both sides must be positive multiples of model_patch_size=16'),
        (dict(input_size=(224, 200)), r'224 x 200 px'),
        (dict(input_size=(1, 2, 3)), r'input_size=\(1, 2, 3\)'),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimMIMMaskGenerator(**arguments)


def test_wrong_image_size_is_named():
    with pytest.raises(ValueError, match='60 x 64 px'):
        SimMIMMaskGenerator()({'img': torch.zeros(3, 60, 64)})
