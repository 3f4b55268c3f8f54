import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simmim_plugin import SimpleFeaturePyramid


def pyramid(**changes) -> SimpleFeaturePyramid:
    torch.manual_seed(0)
    return SimpleFeaturePyramid(**{**dict(in_channels=16, out_channels=8), **changes})


def test_strides_from_4_to_64():
    maps = pyramid()([torch.randn(2, 16, 4, 4), torch.randn(2, 16, 8, 12)])  # the last of the maps: 128 x 192 px
    assert [tuple(m.shape) for m in maps] == [(2, 8, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)]


def test_strides_from_8_to_128():
    maps = pyramid(start_level=1)(torch.randn(1, 16, 16, 16))
    assert [m.shape[-1] for m in maps] == [256 // s for s in (8, 16, 32, 64, 128)]


def test_odd_grids_are_rounded_up():
    """As MMDetection's FPN and anchors have it: a level covers the whole image."""
    maps = pyramid()(torch.randn(1, 16, 5, 7))
    assert [tuple(m.shape[2:]) for m in maps] == [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]


def test_levels_by_hand():
    module, x = pyramid(), torch.randn(2, 16, 6, 6)
    maps = module(x)
    convolution, norm, second, last = module.levels[2]

    def normed(x: torch.Tensor, weight: nn.Module) -> torch.Tensor:  # over the channels, at each pixel
        mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
        return (x - mean) / (var + weight.eps).sqrt()

    expected = normed(F.conv2d(normed(F.conv2d(x, convolution.weight), norm), second.weight, padding=1), last)
    assert torch.allclose(maps[2], expected, atol=1e-5)
    assert torch.equal(maps[4], maps[3][..., ::2, ::2])
    halved = module.levels[3][1:](F.max_pool2d(x, 2))
    assert torch.allclose(maps[3], halved, atol=1e-6)
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(in_channels=0),
            'SimpleFeaturePyramid.in_channels=0 must be a whole .* 4; the embed_dims of the backbone',
        ),
        (dict(out_channels=0.5), 'SimpleFeaturePyramid.out_channels=0.5 must be a whole number of at least 1'),
        (dict(start_level=4), 'SimpleFeaturePyramid.start_level=4 must be .* from 0 to 3; for strides 4, 8, 16, 32'),
        (dict(num_outs=0), 'SimpleFeaturePyramid.num_outs=0 must be a whole number of at least 1; ViTDet uses 5'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        pyramid(**arguments)


def test_a_map_of_another_width_is_named():
    with pytest.raises(ValueError, match=r'in_channels=16, but got a map of shape \(1, 8, 4, 4\); set in_channels'):
        pyramid()(torch.randn(1, 8, 4, 4))
    with pytest.raises(ValueError, match=r'got a map of shape \(1, 16\); .* out_type to .featmap'):
        pyramid()(torch.randn(1, 16))
