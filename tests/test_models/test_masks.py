import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from helpers.masks import draw, units_of
from helpers.paths import ROOT
from simmim_plugin import PackSimMIMInputs, average_distance
from simmim_plugin.registry import TRANSFORMS


def naive_average_distance(mask: np.ndarray, patch: int) -> float:
    pixels = np.kron(mask, np.ones((patch, patch), dtype=int))
    hidden, seen = np.argwhere(pixels == 1), np.argwhere(pixels == 0)
    distances = np.sqrt(((hidden[:, None] - seen[None]) ** 2).sum(-1))
    return float(distances.min(axis=1).mean())


def test_average_distance_by_hand():
    assert average_distance(np.array([[0, 1, 1]], np.uint8), 1) == pytest.approx((1 + 2) / 2)
    # One patch of 2 x 2 px masked in a corner: the nearest visible pixels are 1, 1, 1 and (diagonal) 2 away.
    assert average_distance(np.array([[1, 0], [0, 0]], np.uint8), 2) == pytest.approx((2 + 1 + 1 + 1) / 4)
    assert average_distance(np.array([[0, 1, 1, 1], [1, 1, 1, 1]], np.uint8), 1) == pytest.approx(
        (1 + 2 + 3 + 1 + 2**0.5 + 5**0.5 + 10**0.5) / 7, rel=1e-6
    )
    assert average_distance(np.zeros((2, 3), np.uint8), 16) == 0


@settings(deadline=None, max_examples=40)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 5)), patch=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_average_distance_against_all_pairs_of_pixels(shape, patch, seed):
    mask = (np.random.default_rng(seed).random(shape) < 0.7).astype(np.uint8)
    if mask.all():
        with pytest.raises(ValueError, match='AvgDist is not defined if everything is masked; use a smaller ratio'):
            average_distance(mask, patch)
    elif mask.any():
        assert average_distance(mask, patch) == pytest.approx(naive_average_distance(mask, patch), rel=1e-5)


# configs/_base_/masks.py


@pytest.fixture(scope='module')
def presets():
    return Config.fromfile(ROOT / 'configs/_base_/masks.py').masks


@pytest.mark.parametrize(
    ('name', 'count', 'units'),
    [('simmim', 120, {'mask': (2, 30, 49)}), ('random_tokens', 147, {'mask': (1, 147, 196)}),
     ('simultaneous', None, {'mask_local': (2, 37, 49), 'mask_global': (4, 2, 16)})],
)  # fmt: skip
def test_presets_mask_as_many_units_as_their_names_say(name, count, units, presets):
    generator = TRANSFORMS.build(presets[name])
    for seed in range(20):
        sample = draw(generator, seed, (224, 224))
        assert sample['mask'].shape == (14, 14)
        assert count is None or sample['mask'].sum() == count
        for key, (unit, masked, total) in units.items():
            values = units_of(sample[key], unit)
            assert values.sum() == masked and values.size == total


def test_blockwise_preset_masks_75_tokens_in_blocks(presets):
    pytest.importorskip('mmpretrain')
    generator = TRANSFORMS.build(presets['blockwise'])
    np.random.seed(0)
    for _ in range(20):
        packed = PackSimMIMInputs()(generator({'img': torch.zeros(3, 224, 224)}))
        assert packed['mask'].shape == (14, 14) and packed['mask'].sum() == 75
        assert packed['mask'].dtype == torch.uint8 and set(packed['mask'].unique().tolist()) == {0, 1}


def test_no_preset_is_left_out(presets):
    assert set(presets) == {'simmim', 'simultaneous', 'random_tokens', 'blockwise'}
