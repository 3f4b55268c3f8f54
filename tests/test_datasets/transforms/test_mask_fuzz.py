"""Anything as arguments of the mask generator: a correct mask, or an error that names an argument."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simmim_plugin import SimMIMMaskGenerator

SECONDS = 20
ARGUMENTS = ('mask_ratio', 'mask_patch_size', 'model_patch_size', 'input_size', 'local', 'global_', 'adapt', 'image of')

numbers = st.one_of(
    st.integers(-2, 2), st.sampled_from([8, 16, 32, 64, 10**9]), st.floats(0, 1), st.floats(),
    st.sampled_from([0.6, 0.9]),
)  # fmt: skip
anything = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=3), st.lists(numbers, max_size=3))
units = st.one_of(st.sampled_from([8, 16, 32, 64]), anything)
mappings = st.one_of(
    st.fixed_dictionaries({'ratio': numbers, 'unit': units}, optional={'region_ratio': numbers}),
    st.dictionaries(st.sampled_from(['ratio', 'unit', 'region_ratio', 'other']), anything), anything,
)  # fmt: skip
sizes = st.one_of(
    st.integers(1, 40).map(lambda n: 8 * n), st.tuples(st.integers(0, 300), st.integers(0, 300)), anything
)
adapts = st.one_of(
    st.none(), st.fixed_dictionaries({}, optional={'reference': sizes, 'alpha': numbers}), anything
)  # fmt: skip
configs = st.fixed_dictionaries(
    {},
    optional=dict(
        mask_ratio=anything, mask_patch_size=units, model_patch_size=units, input_size=sizes, local=mappings,
        global_=mappings, adapt=adapts,
    ),
)  # fmt: skip
tried = [0.0, 0]  # when the first config was, and how many there were


@example(dict(mask_patch_size=math.nan))
@example(dict(adapt=dict(alpha=10**9)))
@example(dict(local=dict(ratio=0.999, unit=8), global_=dict(ratio=0.9, unit=64), model_patch_size=8, input_size=256))
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs)
def correct_mask_or_named_argument(config):
    tried[0] = tried[0] or time.monotonic()
    if time.monotonic() - tried[0] > SECONDS:
        return
    tried[1] += 1
    try:
        masks = SimMIMMaskGenerator(**config)({'img': np.zeros((96, 64, 3), np.uint8)})
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in ARGUMENTS), (config, error)
        return
    side = config.get('model_patch_size', 16)
    size = config.get('input_size') or (96, 64)
    height, width = (size, size) if isinstance(size, int) else size
    for name in {'mask', 'mask_local', 'mask_global'} & set(masks):
        assert masks[name].shape == (height // side, width // side)
        assert set(np.unique(masks[name])) <= {0, 1}
    if config.get('local') is None and config.get('global_') is None and config.get('adapt') is None:
        ratio, unit = config.get('mask_ratio'), config.get('mask_patch_size')
        ratio, unit = (0.6 if ratio is None else ratio), (32 if unit is None else unit)
        if height % unit == 0 == width % unit:  # complete units only
            units_masked = np.asarray(masks['mask']).sum() / (unit // side) ** 2
            assert units_masked == math.ceil(ratio * (height // unit) * (width // unit) - 1e-9)


def test_a_correct_mask_or_a_named_argument():
    correct_mask_or_named_argument()
    assert tried[1] > 500


def test_what_masks_everything_is_refused_every_time():
    generator = SimMIMMaskGenerator(0.76, 64)
    for side in (256, 128, 128, 256, 128):
        sample = {'img': torch.empty(3, side, side)}
        if side == 256:
            generator(sample)
        else:
            with pytest.raises(ValueError, match='masks all 4 units of 64 px'):
                generator(sample)
    generator.ratios((16, 16))[0] = 1.0  # the caller's own list
    assert generator({'img': torch.empty(3, 256, 256)})['mask'].mean() < 1
