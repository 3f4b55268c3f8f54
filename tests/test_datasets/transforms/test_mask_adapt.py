import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.masks import draw, simultaneous, units_of
from simmim_plugin import SimMIMMaskGenerator

SIZES = [(192, 192), (224, 224), (384, 384), (192, 384)]


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
    with pytest.raises(ValueError, match=r"adapt={.*'alpha': 0.5}\) masks nothing of .* 192 x 192 px; lower"):
        draw(generator, 0, (192, 192))
    assert not draw(SimMIMMaskGenerator(0, adapt={}), 0, (192, 192))['mask'].any()  # asked for


def test_adapt_that_leaves_rounding_residue_masked_is_named():
    # keep = 0.2 * sqrt(100 / 4) = 1, but 1 - 0.8 = 0.19999999999999996
    generator = SimMIMMaskGenerator(0.8, 16, adapt=dict(reference=160, alpha=0.5))
    with pytest.raises(ValueError, match='masks nothing of an image of 32 x 32 px'):
        draw(generator, 0, (32, 32))


def test_region_that_is_the_whole_image_only_by_rounding_is_named():
    # ceil(0.9 * 4) = 4 units: all of the image, which a region_ratio below 1 does not ask for.
    with pytest.raises(ValueError, match=r'local.ratio=1 .*region_ratio'):
        SimMIMMaskGenerator(local=dict(ratio=1, unit=32, region_ratio=0.9), input_size=64)
