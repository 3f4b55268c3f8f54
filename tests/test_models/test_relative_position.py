import pytest
import torch
from timm.layers.pos_embed_rel import gen_relative_position_index, resize_rel_pos_bias_table_simple

from simmim_plugin.models.layers import relative_position
from simmim_plugin.models.layers.relative_position import (
    RelativePositionBias,
    relative_position_index,
    resize_table,
    table_rows,
)


def test_index_by_hand():
    # A grid of 1 x 2 has (2*1-1)(2*2-1) = 3 offsets (dx = -1, 0, 1 -> rows 0, 1, 2), then cls->patch 3,
    # patch->cls 4 and cls->cls 5; dx is query minus key.
    assert table_rows((1, 2)) == 6
    assert relative_position_index((1, 2)).tolist() == [[5, 3, 3], [4, 1, 0], [4, 2, 1]]


@pytest.mark.parametrize('grid', [(14, 14), (4, 4), (3, 5), (6, 2)])
def test_index_equals_timms(grid):
    assert torch.equal(relative_position_index(grid), gen_relative_position_index(grid, class_token=True))


@pytest.mark.parametrize(('old', 'new'), [(14, 24), (14, 7), (4, 5)])
def test_square_resizing_equals_timms(old, new):
    torch.manual_seed(0)
    table = torch.randn(table_rows((old, old)), 3)
    rows = table_rows((new, new))
    expected = resize_rel_pos_bias_table_simple(table, (new, new), (rows, 3))
    assert torch.allclose(resize_table(table, (old, old), (new, new)), expected, atol=1e-6)


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
