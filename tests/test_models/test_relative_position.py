import pytest
import torch
from mmpretrain.models.utils.embed import resize_relative_position_bias_table
from timm.layers import pos_embed_rel
from timm.layers.pos_embed_rel import gen_relative_position_index

from helpers import interp2d
from helpers.models import TINY
from simmim_plugin import SimMIMViT
from simmim_plugin.models.layers import relative_position
from simmim_plugin.models.layers.relative_position import (
    TABLE,
    RelativePositionBias,
    relative_position_index,
    resize_table,
    table_rows,
)

ARGUMENTS = {name: value for name, value in TINY.items() if name != 'type'}


def test_index_by_hand():
    # A grid of 1 x 2 has (2*1-1)(2*2-1) = 3 offsets (dx = -1, 0, 1 -> rows 0, 1, 2), then cls->patch 3,
    # patch->cls 4 and cls->cls 5; dx is query minus key.
    assert table_rows((1, 2)) == 6
    assert relative_position_index((1, 2)).tolist() == [[5, 3, 3], [4, 1, 0], [4, 2, 1]]


@pytest.mark.parametrize('grid', [(14, 14), (4, 4), (3, 5), (6, 2)])
def test_index_equals_timms(grid):
    assert torch.equal(relative_position_index(grid), gen_relative_position_index(grid, class_token=True))


SIZES = [(12, 14), (14, 16), (14, 24), (14, 7)]


@pytest.mark.parametrize(('old', 'new'), SIZES)
def test_square_resizing_equals_mmpretrains(monkeypatch, old, new):
    interp2d.restore(monkeypatch)
    torch.manual_seed(0)
    table = torch.randn(table_rows((old, old)), 3)
    expected = resize_relative_position_bias_table(2 * old - 1, 2 * new - 1, table[:-3], 3)
    resized = resize_table(table, (old, old), (new, new))
    assert torch.allclose(resized[:-3], expected, rtol=0, atol=1e-6) and torch.equal(resized[-3:], table[-3:])


@pytest.mark.parametrize(('old', 'new'), [((14, 10), (24, 12)), ((5, 14), (9, 20)), ((14, 14), (16, 12))])
def test_resizing_per_axis_equals_timms(monkeypatch, old, new):
    interp2d.restore(monkeypatch)
    torch.manual_seed(0)
    table = torch.randn(table_rows(old), 3)
    expected = pos_embed_rel.resize_rel_pos_bias_table(table, new, (table_rows(new), 3), old)
    assert torch.allclose(resize_table(table, old, new), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('old', 'new'), SIZES)
def test_plain_resizing_equals_timms_simple(old, new):
    torch.manual_seed(0)
    table = torch.randn(table_rows((old, old)), 3)
    expected = pos_embed_rel.resize_rel_pos_bias_table_simple(table, (new, new), (table_rows((new, new)), 3))
    assert torch.allclose(resize_table(table, (old, old), (new, new), 'plain'), expected, atol=1e-6)


def test_small_offsets_keep_their_bias():
    """-log(1 + d) along a row, 14 -> 24 patches: -log 2 = -0.693 at offset 1, before and after."""
    distance = torch.arange(-13, 14.0).abs()
    table = torch.cat((-torch.log1p(distance).expand(27, -1).reshape(-1, 1), torch.zeros(3, 1)))
    for interpolation, at_one in (('geometric', -0.693), ('plain', -0.308)):
        resized = resize_table(table, (14, 14), (24, 24), interpolation)[:-3].view(47, 47)
        assert resized[23, 24].item() == pytest.approx(at_one, abs=0.02)


@pytest.mark.parametrize(('old', 'new'), [((1, 2), (2, 3)), ((2, 2), (4, 4)), ((2, 1), (1, 1))])
def test_the_smallest_grids(old, new):
    table = torch.cat((torch.full((table_rows(old) - 3, 2), 5.0), torch.zeros(3, 2)))
    resized = resize_table(table, old, new)
    assert torch.allclose(resized[:-3], torch.full((table_rows(new) - 3, 2), 5.0)) and not resized[-3:].any()


def test_autocast_does_not_round_the_interpolation():
    table = torch.randn(table_rows((4, 4)), 2)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(resize_table(table, (4, 4), (6, 6)), resize_table(table, (4, 4), (6, 6)))
        resized = resize_table(table, (4, 4), (6, 6))
    assert torch.equal(resized, resize_table(table, (4, 4), (6, 6))) and resized.dtype == torch.float32


def test_a_model_takes_the_plain_interpolation():
    """In `forward`, on loading, with shared and with own tables: each is that of `resize_table`."""
    for tables in (dict(), dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True)):
        small = SimMIMViT(**{**ARGUMENTS, **tables})
        name = next(name for name in small.state_dict() if name.endswith(TABLE))
        torch.nn.init.normal_(small.get_parameter(name))
        loaded, outputs = {}, {}
        for interpolation in ('geometric', 'plain'):
            arguments = {**ARGUMENTS, **tables, 'table_interpolation': interpolation}
            large, same = SimMIMViT(**{**arguments, 'img_size': 96}).eval(), SimMIMViT(**arguments).eval()
            large.load_state_dict(small.state_dict())
            same.load_state_dict(small.state_dict())
            loaded[interpolation] = large.state_dict()[name]
            expected = resize_table(small.state_dict()[name], (4, 4), (6, 6), interpolation)
            assert torch.equal(loaded[interpolation], expected)
            image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                outputs[interpolation] = same(image)[0]
                torch.testing.assert_close(outputs[interpolation], large(image)[0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(loaded['plain'], loaded['geometric'], atol=0.1)
    with pytest.raises(ValueError, match="table_interpolation='cubic' is unknown"):
        SimMIMViT(table_interpolation='cubic')


def test_non_square_resizing_keeps_axes_heads_and_cls_rows():
    # A table that rises with dy and does not depend on dx, with the opposite sign in the second head.
    old, new = (6, 4), (12, 9)
    dy = torch.arange(-(old[0] - 1), old[0]).float()
    offsets = dy[:, None].expand(-1, 2 * old[1] - 1).reshape(-1, 1)
    table = torch.cat((torch.cat((offsets, -offsets), 1), torch.tensor([[7.0, 8.0], [9, 10], [11, 12]])))
    resized = resize_table(table, old, new)
    assert resized.shape == (table_rows(new), 2)
    assert torch.equal(resized[-3:], table[-3:])
    image = resized[:-3].reshape(2 * new[0] - 1, 2 * new[1] - 1, 2)
    assert torch.allclose(image, image[:, :1].expand_as(image), atol=1e-5)
    assert (image[:, 0, 0].diff() > 0).all()
    assert image[new[0] - 1, 0, 0].item() == pytest.approx(0, abs=1e-5)  # dy = 0 stays in the middle
    assert image[-1, 0, 0].item() == pytest.approx(old[0] - 1, abs=0.2)
    assert torch.allclose(image[..., 1], -image[..., 0], atol=1e-5)
    assert resize_table(table, old, old) is table


def test_resized_bias_follows_the_weights():
    module = RelativePositionBias((4, 4), 2)
    with torch.no_grad():
        module.relative_position_bias_table.normal_()
        first = module((6, 3))
        module.relative_position_bias_table.mul_(2)
        assert torch.allclose(module((6, 3)), 2 * first, atol=1e-6)
        assert module((3, 6)).shape == (2, 19, 19)
    module((6, 3)).sum().backward()  # in training the table gets its gradient through the interpolation
    assert module.relative_position_bias_table.grad.abs().sum() > 0


def test_bias_fits_the_fused_kernels_and_survives_inference_mode():
    relative_position._cached_index.cache_clear()
    module = RelativePositionBias((3, 3), 2)
    with torch.inference_mode():
        assert module((3, 3)).stride(-1) == 1
    bias = module((3, 3))
    assert bias.stride() == (10 * 16, 16, 1)  # rows of 10 keys begin at multiples of 8
    bias.sum().backward()
    assert module.relative_position_bias_table.grad.sum().item() == 2 * 10 * 10
