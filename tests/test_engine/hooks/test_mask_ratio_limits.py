"""Invalid ramps, and ramps to and from 0 and 1."""

import pytest
from torch import nn
from torch.utils.data import Subset

from helpers.mask_ramp import (
    Model,
    Runner,
    _simultaneous,
    counts,
    data_loader,
    expected,
    folder,
    ratio_at,
)
from simmim_plugin import ImageFolder, MaskRatioHook


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(start=1.5), r'MaskRatioHook.start=1.5 must be a number in \[0, 1\]'),
        (dict(start=-0.1), r'MaskRatioHook.start=-0.1 must be'),
        (dict(start=0.1, end=2), r'MaskRatioHook.end=2 must be'),
        (dict(start=0.1, schedule='step'), r"schedule='step' is unknown; choose one of 'linear', 'cosine'"),
        (dict(start=0.1, begin=-1), r'MaskRatioHook.begin=-1 must be a whole number of at least 0'),
        (dict(start=0.1, begin=5, until=5), r'MaskRatioHook.until=5 must be a whole number of at least 6; the ramp'),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskRatioHook(**arguments)


def test_begin_after_the_end_of_the_training_is_named(image_folder):
    with pytest.raises(ValueError, match='begin=12 of MaskRatioHook must be before the last iteration, 12'):
        Runner(data_loader(folder(image_folder)), MaskRatioHook(0.1, begin=12), max_epochs=2).train()


def test_argument_that_the_masks_do_not_have_is_named(image_folder):
    with pytest.raises(ValueError, match=r"argument='local.ratio' of MaskRatioHook: the masks .* have 'mask_ratio'$"):
        Runner(data_loader(folder(image_folder)), MaskRatioHook(0.1, argument='local.ratio'), max_epochs=1).train()
    dataset = _simultaneous(image_folder, dict(local=dict(ratio=0.5, unit=8), global_=dict(ratio=0.1, unit=16)))
    with pytest.raises(ValueError, match=r"argument='mask_ratio' .* have 'local.ratio', 'global_.ratio'"):
        Runner(data_loader(dataset), MaskRatioHook(0.1), max_epochs=1).train()
    with pytest.raises(ValueError, match='have none: add SimMIMMaskGenerator to the pipeline'):
        Runner(data_loader(ImageFolder(str(image_folder))), MaskRatioHook(0.1), max_epochs=1).train()


def test_data_that_hide_the_index_are_named(image_folder):
    hidden = Subset(folder(image_folder), range(6))
    with pytest.raises(ValueError, match=r'needs ImageFolder .* got Subset, which does not pass the iteration'):
        Runner(data_loader(hidden), MaskRatioHook(0.1), max_epochs=1).train()


def model_with_a_grid() -> Model:
    model = Model()
    model.backbone = nn.Identity()
    model.backbone.grid = (9, 10)
    return model


def test_ratio_that_masks_everything_at_the_end_is_found_at_the_start(image_folder):
    for ratios in ((0.1, 0.999), (0.999, 0.1)):
        runner = Runner(
            data_loader(folder(image_folder)), MaskRatioHook(*ratios), max_epochs=1, model=model_with_a_grid()
        )
        with pytest.raises(ValueError, match=r'mask_ratio=0.999 masks all 90 units'):
            runner.call_hook('before_train')


@pytest.mark.parametrize(('start', 'end'), [(0.9, 1.0), (1.0, 0.9)])
def test_ramp_to_or_from_one_runs_through(image_folder, start, end):
    # Near 1 everything is masked before the ratio is 1: at 0.994 ceil(89.5) of 90. Allowed, as 1 asks for it.
    loader = data_loader(folder(image_folder), workers=0)
    seen = Runner(loader, MaskRatioHook(start, end, until=17), max_epochs=3, model=model_with_a_grid()).train()
    for iteration, batch in enumerate(seen):
        assert counts(batch) == expected(ratio_at(iteration, start, end, 0, 17))
    assert {81, 90} == {counts(seen[0])[0], counts(seen[-1])[0]}


@pytest.mark.parametrize(('start', 'end'), [(0.0, 0.9), (0.9, 0.0)])
def test_ramp_to_or_from_zero_with_adapt_runs_through(image_folder, start, end):
    # keep' = min(1, 2 keep): nothing is masked up to a ratio of 0.5. Allowed, as 0 asks for it.
    loader = data_loader(folder(image_folder, 0.9, adapt=dict(reference=(144, 160), alpha=0.5)), workers=0)
    seen = Runner(loader, MaskRatioHook(start, end, until=17), max_epochs=3, model=model_with_a_grid()).train()
    for iteration, batch in enumerate(seen):
        assert counts(batch) == expected(max(0, 2 * ratio_at(iteration, start, end, 0, 17) - 1))
    assert {0, 72} == {counts(seen[0])[0], counts(seen[-1])[0]}
