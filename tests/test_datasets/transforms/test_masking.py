import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.masks import draw, simultaneous, units_of
from simmim_plugin import PackSimMIMInputs, SimMIMMaskGenerator
from simmim_plugin.models.masks import masked_count

pytestmark = pytest.mark.core


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
    all_units = math.ceil(h / unit) * math.ceil(w / unit)
    arguments = (percent / 100, patch * unit, patch, (h * patch, w * patch))
    if percent < 100 and math.ceil(Fraction(percent, 100) * all_units) == all_units:
        with pytest.raises(ValueError, match=f'masks all {all_units} units'):  # not asked for
            SimMIMMaskGenerator(*arguments)
        return
    np.random.seed(seed)
    generator = SimMIMMaskGenerator(*arguments)
    mask = generator({})['mask']
    assert mask.shape == (h, w)
    units = units_of(mask, unit)
    assert units.sum() == math.ceil(Fraction(percent, 100) * units.size)
    np.random.seed(seed)
    assert (generator({})['mask'] == mask).all()


def test_count_has_no_rounding_error():
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
        (dict(mask_ratio=1.2), r'mask_ratio=1.2 must be a number in \[0, 1\]; the usual value is 0.6'),
        (dict(mask_ratio=-0.1), r'mask_ratio=-0.1 must be'),
        (dict(mask_ratio='0.5'), r"mask_ratio='0.5' must be a number in \[0, 1\]"),
        (dict(local=dict(ratio='0.5', unit=32)), r"local.ratio='0.5' must be a number"),
        (dict(local=dict(ratio=0.5, unit=32.0)), r'local.unit=32.0 must be a multiple of .* e.g. 32'),
        (dict(adapt=dict(alpha='a')), r"adapt.alpha='a' must be a number"),
        (dict(adapt=dict(alpha=float('nan'))), r'adapt.alpha=nan must be a number'),
        (dict(mask_ratio=1e-12, input_size=64), r'mask_ratio=1e-12 masks nothing of an image of 64 x 64 px; use a la'),
        (dict(input_size=224.0), r'input_size=224.0 must be one side'),
        (dict(mask_patch_size=40), r'mask_patch_size=40 must be a multiple of model_patch_size=16, e.g. 32'),
        (dict(mask_patch_size=8), r'mask_patch_size=8 must be .* e.g. 16'),
        (dict(model_patch_size=0), r'model_patch_size=0 must be'),
        (dict(input_size=200), r'200 x 200 px: both sides must be multiples of the patch, 16 px, e.g. 192 x 192'),
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


# Local and global masks


@settings(deadline=None, max_examples=300)
@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    patch=st.sampled_from([4, 7, 16]),
    units=st.tuples(st.integers(1, 5), st.integers(1, 8)),
    percents=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    region=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
@example((14, 14), 16, (2, 4), (75, 10), 100, 0)
@example((4, 4), 16, (2, 2), (75, 75), 100, 0)
@example((14, 14), 16, (2, 4), (100, 10), 100, 0)
@example((14, 14), 16, (2, 4), (0, 0), 100, 0)
def test_both_counts_are_exact_whatever_size_unit_ratio_and_region(grid, patch, units, percents, region, seed):
    total = [math.ceil(grid[0] / unit) * math.ceil(grid[1] / unit) for unit in units]
    regions = [math.ceil(Fraction(region, 100) * total[0]), total[1]]
    counts = [math.ceil(Fraction(percent, 100) * size) for percent, size in zip(percents, regions)]
    all_wanted = percents[1] == 100 or (percents[0] == 100 and region == 100)
    arguments = dict(
        local=dict(ratio=percents[0] / 100, unit=units[0] * patch, region_ratio=region / 100),
        global_=dict(ratio=percents[1] / 100, unit=units[1] * patch),
        model_patch_size=patch,
        input_size=(grid[0] * patch, grid[1] * patch),
    )
    if not all_wanted and (counts[0] == total[0] or counts[1] == total[1]):
        name, full = ('local.ratio', total[0]) if counts[0] == total[0] else ('global_.ratio', total[1])
        with pytest.raises(ValueError, match=rf'^{name}=.* masks all {full} units of'):
            SimMIMMaskGenerator(**arguments)
        return
    generator = SimMIMMaskGenerator(**arguments)
    sample = draw(generator, seed)
    local, coarse, union = sample['mask_local'], sample['mask_global'], sample['mask']
    for mask in (local, coarse, union):
        assert mask.shape == grid and mask.dtype == np.uint8 and mask.flags['C_CONTIGUOUS']
    assert units_of(local, units[0]).sum() == counts[0]
    assert units_of(coarse, units[1]).sum() == counts[1]
    assert np.array_equal(1 - union, (1 - local) * (1 - coarse))  # visible only where neither masks
    assert union.all() == all_wanted
    assert union.any() == (max(percents) > 0)
    again = draw(generator, seed)
    assert all(np.array_equal(again[name], sample[name]) for name in ('mask', 'mask_local', 'mask_global'))


@pytest.mark.parametrize(
    ('side', 'units', 'counts', 'totals'),
    [
        (64, (32, 32), (3, 3), (4, 4)),  # a plain draw hides all in 3 of 4 cases
        (64, (16, 32), (15, 3), (16, 4)),
        (96, (48, 32), (3, 8), (4, 9)),  # units that do not divide one another
        (224, (32, 64), (48, 15), (49, 16)),  # edge units of 32 px
    ],
)
def test_two_masks_never_hide_the_whole_image_together(side, units, counts, totals):
    local, global_ = (count / total for count, total in zip(counts, totals))
    generator = simultaneous(local, global_, units, input_size=side)
    rng = np.random.default_rng(0)

    def covers(unit, count, total):
        chosen = rng.permutation(total) < count
        grid = chosen.reshape(math.isqrt(total), -1).repeat(unit // 16, 0).repeat(unit // 16, 1)
        return grid[: side // 16, : side // 16]

    plain = [covers(units[0], counts[0], totals[0]) | covers(units[1], counts[1], totals[1]) for _ in range(200)]
    assert sum(mask.all() for mask in plain) > 100  # so that the test says something
    np.random.seed(0)
    for _ in range(100):
        sample = generator({})
        assert not sample['mask'].all()
        assert units_of(sample['mask_local'], units[0] // 16).sum() == counts[0]
        assert units_of(sample['mask_global'], units[1] // 16).sum() == counts[1]


def test_local_alone_draws_the_masks_of_the_published_arguments():
    for ratio, unit, size in ((0.6, 32, 224), (0.75, 16, 192), (0.5, 64, (96, 224))):
        published = SimMIMMaskGenerator(ratio, unit, input_size=size)
        local = SimMIMMaskGenerator(local=dict(ratio=ratio, unit=unit), input_size=size)
        for seed in range(20):
            samples = draw(published, seed), draw(local, seed)
            assert np.array_equal(samples[0]['mask'], samples[1]['mask'])
            assert set(samples[0]) == set(samples[1]) == {'mask'}


def test_global_alone_is_one_mask():
    generator = SimMIMMaskGenerator(global_=dict(ratio=0.1, unit=64), input_size=224)
    sample = draw(generator, 0)
    assert set(sample) == {'mask'} and units_of(sample['mask'], 4).sum() == 2


def test_global_mask_is_drawn_independently_of_the_local_one():
    generator = simultaneous(input_size=224)
    np.random.seed(0)
    n, both, local, coarse = 4000, np.zeros((14, 14)), np.zeros((14, 14)), np.zeros((14, 14))
    for _ in range(n):
        sample = generator({})
        local += sample['mask_local']
        coarse += sample['mask_global']
        both += sample['mask_local'] & sample['mask_global']
    for found, expected in ((local, 37 / 49), (coarse, 2 / 16), (both, 37 / 49 * 2 / 16)):
        error = math.sqrt(expected * (1 - expected) / n)
        assert np.abs(found / n - expected).max() < 6 * error


def test_region_of_prediction_bounds_the_mask():
    # 49 units: ceil(0.5 * 49) = 25 in the region, ceil(0.75 * 25) = 19 of them masked; all 25 with ratio 1.
    for ratio, count in ((0.75, 19), (1, 25), (0.04, 1), (0, 0)):
        generator = SimMIMMaskGenerator(local=dict(ratio=ratio, unit=32, region_ratio=0.5), input_size=224)
        masks = [units_of(draw(generator, seed)['mask'], 2) for seed in range(400)]
        assert {mask.sum() for mask in masks} == {count}
        share = count / 49  # the region is another one each time: every unit is masked as often
        assert np.abs(np.mean(masks, axis=0) - share).max() <= 6 * math.sqrt(share * (1 - share) / 400)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(mask_ratio=1.0),
        dict(local=dict(ratio=1, unit=32)),
        dict(global_=dict(ratio=1.0, unit=64)),
        dict(local=dict(ratio=0.75, unit=32), global_=dict(ratio=1, unit=64)),
    ],
)
def test_ratio_of_one_masks_all(arguments):
    sample = draw(SimMIMMaskGenerator(**arguments), 0, (224, 224))
    assert sample['mask'].all()
    if 'mask_local' in sample:
        assert units_of(sample['mask_local'], 2).sum() == 37


def test_edge_units_are_cut():
    seen = set()
    for seed in range(60):
        mask = draw(simultaneous(0.2, 0.25, (48, 64), input_size=(80, 224)), seed)['mask_global']
        assert mask.shape == (5, 14)
        assert units_of(mask, 4).shape == (2, 4) and units_of(mask, 4).sum() == 2
        seen.add(int(mask.sum()))
    # Units of 4 x 4, 4 x 2 (right edge), 1 x 4 (lower edge) and 1 x 2 (corner) patches, two different ones.
    assert seen <= {32, 24, 20, 18, 12, 10, 8, 6} and {32, 20} <= seen and min(seen) < 12


def test_packed_masks_are_separate_tensors():
    sample = draw(simultaneous(), 0, (96, 64))
    packed = PackSimMIMInputs()(sample)
    for name in ('mask', 'mask_local', 'mask_global'):
        assert packed[name].dtype == torch.uint8 and np.array_equal(packed[name].numpy(), sample[name])
    assert torch.equal(packed['mask'], packed['mask_local'] | packed['mask_global'])


# Errors


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(local=dict(ratio=0.75)),
            r"^local={'ratio': 0.75} must be a dict of ratio, unit, region_ratio .optional.",
        ),
        (dict(local=dict(unit=32)), r"^local={'unit': 32} must be a dict of ratio, unit"),
        (dict(local=0.75), r'^local=0.75 must be a dict of ratio, unit'),
        (dict(local=dict(ratio=0.75, unit=32, size=3)), r"^local={.*'size': 3} must be a dict of ratio, unit"),
        (dict(global_=dict(ratio=0.1, unit=64, region_ratio=1)), r'^global_={.*} must be a dict of ratio, unit$'),
        (dict(global_=dict(ratio=0.1)), r"^global_={'ratio': 0.1} must be"),
        (
            dict(mask_ratio=0.6, local=dict(ratio=0.75, unit=32)),
            r'^mask_ratio=0.6 and mask_patch_size=None have no effect with local or global_; give ratio and',
        ),
        (dict(mask_patch_size=32, global_=dict(ratio=0.1, unit=64)), r'^mask_ratio=None and mask_patch_size=32 have'),
        (
            dict(local=dict(ratio=1.1, unit=32)),
            r'^local.ratio=1.1 must be a number in \[0, 1\]; the usual value is 0.75',
        ),
        (dict(local=dict(ratio=-0.1, unit=32)), r'^local.ratio=-0.1 must be'),
        (dict(local=dict(ratio=float('nan'), unit=32)), r'^local.ratio=nan must be'),
        (
            dict(global_=dict(ratio=2, unit=64)),
            r'^global_.ratio=2 must be a number in \[0, 1\]; the usual value is 0.1',
        ),
        (dict(local=dict(ratio=0.5, unit=40)), r'^local.unit=40 must be .* of model_patch_size=16, e.g. 32'),
        (dict(global_=dict(ratio=0.5, unit=0)), r'^global_.unit=0 must be .* e.g. 16'),
        (dict(global_=dict(ratio=0.5, unit=-16)), r'^global_.unit=-16 must be a multiple'),
        (dict(local=dict(ratio=0.5, unit=32, region_ratio=0)), r'^local.region_ratio=0 must be a number in \(0, 1\]'),
        (dict(local=dict(ratio=0.5, unit=32, region_ratio=1.5)), r'^local.region_ratio=1.5 must be .* 1 is the who'),
        (dict(adapt=dict(alpha=-1)), r'^adapt.alpha=-1 must be a number in .0, 10.; 0 keeps the ratio'),
        (
            dict(adapt=dict(reference=0)),
            r'^adapt.reference=0 must be one side or .height, width., in whole pixels, e.g. 224',
        ),
        (dict(adapt=dict(reference=(224, -1))), r'^adapt.reference=\(224, -1\) must be'),
        (dict(adapt=dict(reference=(1, 2, 3))), r'^adapt.reference=\(1, 2, 3\) must be one side or \(height, width\)'),
        (dict(adapt=dict(gamma=1)), r"^adapt={'gamma': 1} must be a dict of reference .optional., alpha"),
        (dict(adapt=0.5), r'^adapt=0.5 must be a dict'),
        (
            dict(mask_ratio=0.99),
            r'^mask_ratio=0.99 masks all 49 units of 32 px .* 224 x 224 px; use smaller units or a smaller',
        ),
        (dict(local=dict(ratio=0.99, unit=32)), r'^local.ratio=0.99 masks all 49 units of 32 px .* use smaller units'),
        (dict(global_=dict(ratio=0.95, unit=64)), r'^global_.ratio=0.95 masks all 16 units of 64 px of an image of'),
    ],
)
def test_wrong_local_global_and_adapt_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimMIMMaskGenerator(input_size=224, **arguments)


def test_masking_all_is_named_when_the_image_is_known():
    generator = SimMIMMaskGenerator(0.76, 64)
    draw(generator, 0, (224, 224))
    with pytest.raises(ValueError, match=r'mask_ratio=0.76 masks all 4 units of 64 px of an image of 128 x 128 px'):
        draw(generator, 0, (128, 128))
