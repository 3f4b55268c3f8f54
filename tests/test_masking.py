import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image

from simmim_plugin import PackSimMIMInputs, SimMIMMaskGenerator, average_distance
from simmim_plugin.registry import TRANSFORMS
from simmim_plugin.unit_masks import masked_count

SIZES = [(192, 192), (224, 224), (384, 384), (192, 384)]


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


def draw(generator: SimMIMMaskGenerator, seed: int, size=None) -> dict[str, np.ndarray]:
    np.random.seed(seed)
    return generator({} if size is None else {'img': torch.zeros(1, *size)})


def simultaneous(local_ratio=0.75, global_ratio=0.1, units=(32, 64), **kwargs) -> SimMIMMaskGenerator:
    local, coarse = dict(ratio=local_ratio, unit=units[0]), dict(ratio=global_ratio, unit=units[1])
    return SimMIMMaskGenerator(local=local, global_=coarse, **kwargs)


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
        (dict(mask_ratio='0.5'), r"mask_ratio='0.5' must be a number in \[0, 1\]"),
        (dict(local=dict(ratio='0.5', unit=32)), r"local.ratio='0.5' must be a number"),
        (dict(local=dict(ratio=0.5, unit=32.0)), r'local.unit=32.0 must be a positive multiple of .* e.g. 32'),
        (dict(adapt=dict(alpha='a')), r"adapt.alpha='a' must be a number"),
        (dict(adapt=dict(alpha=float('nan'))), r'adapt.alpha=nan must be a number'),
        (dict(mask_ratio=1e-12, input_size=64), r'mask_ratio=1e-12 masks nothing of an image of 64 x 64 px; raise it'),
        (dict(input_size=224.0), r'input_size=224.0 must be one side'),
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
    generator = simultaneous(*(count / total for count, total in zip(counts, totals)), units, input_size=side)
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


def test_packed_masks_are_tensors_apart_from_each_other():
    sample = draw(simultaneous(), 0, (96, 64))
    packed = PackSimMIMInputs()(sample)
    for name in ('mask', 'mask_local', 'mask_global'):
        assert packed[name].dtype == torch.uint8 and np.array_equal(packed[name].numpy(), sample[name])
    assert torch.equal(packed['mask'], packed['mask_local'] | packed['mask_global'])


# Ratios that fit the size


@pytest.mark.parametrize(
    ('alpha', 'counts'),
    [
        # keep = 0.4 of 196 tokens. Square roots of 196 / N: 14/12, 1, 14/24, 14/sqrt(288).
        (0.5, (77, 118, 442, 193)),
        (0, (87, 118, 346, 173)),  # 0.6 N
        (1, (66, 118, 498, 210)),  # N - 78.4: 78 visible tokens whatever the size
    ],
)
def test_adapted_counts_by_hand(alpha, counts):
    generator = SimMIMMaskGenerator(0.6, 16, adapt=dict(reference=224, alpha=alpha))
    found = [draw(generator, 0, size)['mask'].sum() for size in SIZES]
    assert found == list(counts)
    if alpha == 1:
        assert [h * w // 256 - count for (h, w), count in zip(SIZES, found)] == [78] * 4


def test_adapted_ratios_by_hand():
    generator = simultaneous(adapt=dict(reference=224, alpha=0.5))
    ratios = {size: generator.ratios((size[0] // 16, size[1] // 16)) for size in SIZES}
    assert ratios[192, 192] == pytest.approx([1 - 0.25 * 14 / 12, 0])  # keep 0.9 * 14/12 > 1 is clipped
    assert ratios[224, 224] == pytest.approx([0.75, 0.1])
    assert ratios[384, 384] == pytest.approx([0.854166667, 0.475])
    assert ratios[192, 384] == pytest.approx([1 - 0.25 * 14 / 288**0.5, 1 - 0.9 * 14 / 288**0.5])
    sample = draw(generator, 0, (384, 384))
    assert units_of(sample['mask_local'], 2).sum() == 123  # 0.8541666 * 144, free of rounding residue
    assert units_of(sample['mask_global'], 4).sum() == 18  # ceil(17.1)
    sample = draw(generator, 0, (192, 192))
    assert units_of(sample['mask_local'], 2).sum() == 26 and not sample['mask_global'].any()  # ceil(25.5)


def test_adapt_takes_a_reference_that_is_not_square_and_has_defaults():
    by_sides = SimMIMMaskGenerator(0.6, adapt=dict(reference=(112, 448), alpha=0.5))  # 7 x 28 = 196 tokens
    by_default = SimMIMMaskGenerator(0.6, adapt={})
    for generator in (by_sides, by_default):
        assert generator.ratios((24, 24)) == pytest.approx([1 - 0.4 * 14 / 24])


@settings(deadline=None, max_examples=150)
@given(
    grid=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    percent=st.integers(1, 99),
    alpha=st.sampled_from([0, 0.25, 0.5, 1, 2]),
)
def test_adapted_count_for_any_size(grid, percent, alpha):
    tokens = grid[0] * grid[1]
    keep = (100 - percent) / 100 * (196 / tokens) ** alpha
    visible = tokens if keep >= 1 else math.floor(round(keep * tokens, 6))
    generator = SimMIMMaskGenerator(percent / 100, 16, adapt=dict(reference=224, alpha=alpha))
    size = (grid[0] * 16, grid[1] * 16)
    if visible in (0, tokens):
        with pytest.raises(ValueError, match='masks nothing' if visible else f'masks all {tokens} units'):
            draw(generator, 0, size)
    else:
        assert tokens - draw(generator, 0, size)['mask'].sum() == visible


def test_adapt_that_leaves_nothing_masked_is_named():
    generator = SimMIMMaskGenerator(0.1, 32, adapt=dict(reference=224, alpha=0.5))
    assert draw(generator, 0, (224, 224))['mask'].any()
    with pytest.raises(ValueError, match=r"adapt={.*'alpha': 0.5} masks nothing of an image of 192 x 192 px; lower"):
        draw(generator, 0, (192, 192))
    assert not draw(SimMIMMaskGenerator(0, adapt={}), 0, (192, 192))['mask'].any()  # asked for


def test_adapt_that_leaves_rounding_residue_masked_is_named_too():
    # keep = 0.2 * sqrt(100 / 4) = 1, but 1 - 0.8 = 0.19999999999999996
    generator = SimMIMMaskGenerator(0.8, 16, adapt=dict(reference=160, alpha=0.5))
    with pytest.raises(ValueError, match='masks nothing of an image of 32 x 32 px'):
        draw(generator, 0, (32, 32))


@pytest.mark.parametrize(
    ('arguments', 'name', 'size'),
    [
        (dict(mask_ratio=0.99), 'mask_ratio', (224, 224)),
        (dict(mask_ratio=0.8, mask_patch_size=224, adapt=dict(alpha=0.5)), 'mask_ratio', (448, 448)),
        (dict(local=dict(ratio=0.99, unit=32)), 'local.ratio', (224, 224)),
        (dict(local=dict(ratio=0.9, unit=64), global_=dict(ratio=0.1, unit=64)), 'local.ratio', (128, 128)),
    ],
)
def test_ratio_that_the_message_advises_does_it(arguments, name, size):
    with pytest.raises(ValueError, match=rf'^{name}=.*ratio of at most [0-9.]+') as error:
        draw(SimMIMMaskGenerator(**arguments), 0, size)
    advised = float(str(error.value).split('at most ')[1].split(',')[0])
    better = {**arguments, 'mask_ratio': advised}
    if name != 'mask_ratio':
        better = {**arguments, 'local': {**arguments['local'], 'ratio': advised}}
    sample = draw(SimMIMMaskGenerator(**better), 0, size)
    assert sample['mask'].any() and not sample['mask'].all()


@pytest.mark.parametrize(
    ('arguments', 'size'),
    [
        (dict(mask_ratio=0.5, mask_patch_size=32), 32),  # one unit
        (dict(mask_ratio=0.8, mask_patch_size=224, adapt=dict(alpha=1)), 448),  # keep' = keep / 4 of 4 units
    ],
)
def test_no_ratio_is_advised_where_none_would_do(arguments, size):
    with pytest.raises(ValueError, match=r'masks all [14] units of .*; use smaller units, or 1 if all shall be masked'):
        SimMIMMaskGenerator(**arguments, input_size=size)


def test_region_that_is_the_whole_image_only_by_rounding_is_named():
    # ceil(0.9 * 4) = 4 units: all of the image, which a region_ratio below 1 does not ask for.
    with pytest.raises(ValueError, match=r'local.ratio=1 .*region_ratio'):
        SimMIMMaskGenerator(local=dict(ratio=1, unit=32, region_ratio=0.9), input_size=64)


# Errors


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(local=dict(ratio=0.75)), r"^local={'ratio': 0.75} must be a dict of ratio and unit, and region_ratio if"),
        (dict(local=dict(unit=32)), r"^local={'unit': 32} must be a dict of ratio and unit"),
        (dict(local=0.75), r'^local=0.75 must be a dict of ratio and unit'),
        (dict(local=dict(ratio=0.75, unit=32, size=3)), r"^local={.*'size': 3} must be a dict of ratio and unit"),
        (dict(global_=dict(ratio=0.1, unit=64, region_ratio=1)), r'^global_={.*} must be a dict of ratio and unit$'),
        (dict(global_=dict(ratio=0.1)), r"^global_={'ratio': 0.1} must be"),
        (
            dict(mask_ratio=0.6, local=dict(ratio=0.75, unit=32)),
            r'^mask_ratio=0.6 and mask_patch_size=None do nothing beside local or global_; give ratio and unit inside',
        ),
        (dict(mask_patch_size=32, global_=dict(ratio=0.1, unit=64)), r'^mask_ratio=None and mask_patch_size=32 do'),
        (dict(local=dict(ratio=1.1, unit=32)), r'^local.ratio=1.1 is outside \[0, 1\]; the usual value is 0.75'),
        (dict(local=dict(ratio=-0.1, unit=32)), r'^local.ratio=-0.1 is outside'),
        (dict(local=dict(ratio=float('nan'), unit=32)), r'^local.ratio=nan is outside'),
        (dict(global_=dict(ratio=2, unit=64)), r'^global_.ratio=2 is outside \[0, 1\]; the usual value is 0.1'),
        (dict(local=dict(ratio=0.5, unit=40)), r'^local.unit=40 must be .* of model_patch_size=16, e.g. 32'),
        (dict(global_=dict(ratio=0.5, unit=0)), r'^global_.unit=0 must be .* e.g. 16'),
        (dict(global_=dict(ratio=0.5, unit=-16)), r'^global_.unit=-16 must be a positive multiple'),
        (dict(local=dict(ratio=0.5, unit=32, region_ratio=0)), r'^local.region_ratio=0 is outside \(0, 1\]'),
        (dict(local=dict(ratio=0.5, unit=32, region_ratio=1.5)), r'^local.region_ratio=1.5 is outside .* 1 is the who'),
        (dict(adapt=dict(alpha=-1)), r'^adapt.alpha=-1 must be a number and not negative; 0 keeps the ratio'),
        (dict(adapt=dict(reference=0)), r'^adapt.reference=0 must be a positive number of pixels, e.g. 224'),
        (dict(adapt=dict(reference=(224, -1))), r'^adapt.reference=\(224, -1\) must be'),
        (dict(adapt=dict(reference=(1, 2, 3))), r'^adapt.reference=\(1, 2, 3\) must be one side or \(height, width\)'),
        (dict(adapt=dict(gamma=1)), r"^adapt={'gamma': 1} must be a dict of reference .* and alpha"),
        (dict(adapt=0.5), r'^adapt=0.5 must be a dict'),
        (dict(mask_ratio=0.99), r'^mask_ratio=0.99 masks all 49 units of 32 px .* 224 x 224 px; .* at most 0.97, or 1'),
        (dict(local=dict(ratio=0.99, unit=32)), r'^local.ratio=0.99 masks all 49 units of 32 px .* at most 0.97, or 1'),
        (dict(global_=dict(ratio=0.95, unit=64)), r'^global_.ratio=0.95 masks all 16 units of 64 px .* at most 0.93'),
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


# AvgDist


def naive_average_distance(mask: np.ndarray, patch: int) -> float:
    pixels = np.kron(mask, np.ones((patch, patch), dtype=int))
    hidden, seen = np.argwhere(pixels == 1), np.argwhere(pixels == 0)
    distances = np.sqrt(((hidden[:, None] - seen[None]) ** 2).sum(-1))
    return float(distances.min(axis=1).mean())


def test_average_distance_by_hand():
    assert average_distance(np.array([[0, 1, 1]], np.uint8), 1) == pytest.approx((1 + 2) / 2)
    # One patch of 2 x 2 px masked in a corner: the visible pixels beside it are 1, 1, 1 and (diagonal) 2 away.
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
        with pytest.raises(ValueError, match='AvgDist is not defined where all is masked; use a smaller ratio'):
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
def test_presets_mask_what_they_say(name, count, units, presets):
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
