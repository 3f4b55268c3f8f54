import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.models import TINY
from simmim_plugin import SimMIMViT
from simmim_plugin.models.layers.relative_position import bias_from_table
from simmim_plugin.models.layers.transformer import Attention, in_windows, window_parts

ARGUMENTS = {k: v for k, v in TINY.items() if k != 'type'}
PER_BLOCK = dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True)


def vit(**changes) -> SimMIMViT:
    torch.manual_seed(0)
    model = SimMIMViT(**{**ARGUMENTS, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def attention(size: int, prefix: int = 1) -> Attention:
    torch.manual_seed(1)
    module = Attention(48, 4, (size, size), prefix=prefix)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def windowed(module: Attention, x: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    return in_windows(lambda tokens, part: module(tokens, part, None, (size, size)), x, grid, size, module.prefix)


def padded_to_whole_windows(module: Attention, x: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """The same by hand: pad the grid, cut it into equal windows, hide the padding from every query, cut it back."""
    h, w = grid
    rows, columns = -(-h // size), -(-w // size)
    first = module.prefix
    tokens = [0] * first + list(range(1, 1 + size * size))  # registers have the rows of the class token
    bias = bias_from_table(module.relative_position_bias_table, (size, size))[:, tokens][:, :, tokens]
    cls = x[:, :first]
    patches = F.pad(x[:, first:].reshape(-1, h, w, 48), (0, 0, 0, columns * size - w, 0, rows * size - h), value=7.0)
    seen = F.pad(torch.ones(h, w), (0, columns * size - w, 0, rows * size - h)).bool()
    out, cls_out = torch.zeros_like(patches), []
    for i in range(rows):
        for j in range(columns):
            place = (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
            tokens = torch.cat((cls, patches[:, place[0], place[1]].flatten(1, 2)), dim=1)
            qkv = F.linear(tokens, module.qkv.weight)
            q, k, v = qkv.split(48, dim=-1)
            q, v = q + module.q_bias, v + module.v_bias
            q, k, v = (t.unflatten(-1, (4, 12)).transpose(1, 2) for t in (q, k, v))
            scores = q @ k.transpose(-2, -1) / 12**0.5 + bias
            hidden = torch.cat((torch.zeros(first, dtype=torch.bool), ~seen[place].flatten()))
            result = scores.masked_fill(hidden, float('-inf')).softmax(-1) @ v
            result = module.proj(result.transpose(1, 2).flatten(2))
            cls_out.append(result[:, :first])
            out[:, place[0], place[1]] = result[:, first:].unflatten(1, (size, size))
    return torch.cat((torch.stack(cls_out).mean(dim=0), out[:, :h, :w].flatten(1, 2)), dim=1)


@pytest.mark.parametrize(
    'grid, prefix', [((4, 4), 1), ((8, 4), 1), ((6, 9), 1), ((6, 9), 4), ((5, 3), 1), ((1, 7), 2), ((9, 8), 1)]
)
def test_equals_padding_that_is_not_seen(grid, prefix):
    module, x = attention(4, prefix), torch.randn(2, prefix + grid[0] * grid[1], 48)
    ours, theirs = windowed(module, x, grid, 4), padded_to_whole_windows(module, x, grid, 4)
    assert torch.allclose(ours, theirs, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().sum(), list(module.parameters()), retain_graph=True) for out in (ours, theirs)
    ]
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max())


def test_one_window_equals_global_attention():
    module, x = attention(4), torch.randn(2, 17, 48)
    assert torch.allclose(windowed(module, x, (4, 4), 4), module(x, (4, 4), None), atol=1e-6)
    for size in (4, 7):  # of 7, a window is larger than the grid
        model, images = vit(**PER_BLOCK, window_size=size), torch.randn(2, 3, 64, 64)
        global_ = vit(**PER_BLOCK)
        assert torch.equal(model(images)[0], global_(images)[0])


def test_images_smaller_than_a_window_have_global_attention():
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(vit(**PER_BLOCK, window_size=4)(images)[0], vit(**PER_BLOCK)(images)[0])


def test_patches_see_their_window_and_the_class_token_only():
    module = attention(4)
    x = torch.randn(1, 1 + 48, 48, requires_grad=True)  # 6 x 8 patches
    windowed(module, x, (6, 8), 4)[0, 1 + 5 * 8 + 7].sum().backward()  # the last patch, in a window of 2 x 4
    seen = x.grad[0].abs().sum(-1) > 0
    assert seen[0] and seen[1:].reshape(6, 8).nonzero().tolist() == [[y, x] for y in (4, 5) for x in range(4, 8)]


@pytest.mark.parametrize('shared', [True, False])
def test_windows_have_the_offsets_of_the_pretrained_table(shared):
    """A grid of full windows: a block gives the same as on each window as an image of its own."""
    tables = {} if shared else PER_BLOCK
    arch = {**ARGUMENTS['arch'], 'num_layers': 1}
    model, global_ = vit(arch=arch, window_size=4, **tables), vit(arch=arch, **tables)
    images = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        maps = model(images)[0]
        parts = [global_(part)[0] for part in images.split(64, dim=3)]
    assert torch.allclose(maps, torch.cat(parts, dim=3), atol=1e-5)


def test_global_blocks_see_everything():
    model = vit(**PER_BLOCK, window_size=2, global_blocks=(-1,))
    assert [block.window_size for block in model.blocks] == [2, 2, 0]
    images = torch.randn(1, 3, 64, 96, requires_grad=True)
    model(images)[0][0, :, 0, 0].sum().backward()
    assert images.grad[..., 48:, 80:].abs().sum() > 0
    all_global, images = vit(**PER_BLOCK, window_size=2, global_blocks=(0, 1, 2)), torch.randn(1, 3, 80, 96)
    assert torch.equal(all_global(images)[0], vit(**PER_BLOCK)(images)[0])


@pytest.mark.parametrize('tables', [{}, PER_BLOCK])
def test_recomputing_gives_the_same_gradients(tables):
    images, gradients = torch.randn(1, 3, 96, 112), []
    for with_cp in (False, True):
        model = vit(**tables, window_size=4, global_blocks=(1,), with_cp=with_cp, drop_path_rate=0.0).train()
        model(images)[0].square().sum().backward()
        gradients.append([p.grad for name, p in model.named_parameters() if name != 'mask_token'])
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * b.abs().max())


def test_a_batch_gives_what_its_images_give_one_by_one():
    model, images = vit(**PER_BLOCK, window_size=4, global_blocks=(1,)), torch.randn(3, 3, 96, 80)
    with torch.no_grad():
        together, alone = model(images)[0], torch.cat([model(image[None])[0] for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_sides_are_padded_on_request():
    images = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        maps = vit(dynamic_img_pad=True)(images)[0]
        assert torch.equal(maps, vit()(F.pad(images, (0, 6, 0, 10)))[0])
    assert maps.shape == (1, 48, 5, 6)
    with pytest.raises(
        ValueError, match=r'input of 70 x 90 px: .* the patch, 16 px, e.g. .*; dynamic_img_pad=True pads inputs'
    ):
        vit()(images)


def test_parts_of_a_grid():
    assert window_parts((8, 12), 4) == [(4, 4)]
    assert window_parts((64, 64), 14) == [(14, 14), (14, 8), (8, 14), (8, 8)]  # 1024 px
    assert window_parts((3, 9), 4) == [(3, 4), (3, 1)]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(window_size=-1),
            'window_size=-1 must be a whole number of at least 0; the side of a window in patches, ',
        ),
        (dict(global_blocks=(2,)), r'global_blocks=\(2,\) without window_size: all blocks are global'),
        (dict(window_size=14, global_blocks=(2, 5)), 'global_blocks=5 must be a whole number from -3 to 2'),
        (dict(window_size=14, global_blocks=(2, 1)), r'global_blocks=\(2, 1\) must be one or more blocks, rising'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        vit(**arguments)


def test_attention_of_a_patch_is_refused_where_no_patch_sees_the_whole_image():
    with pytest.raises(ValueError, match='some blocks attend inside windows only'):
        vit(window_size=2).forward_intermediates(torch.randn(1, 3, 64, 64), attention_of=(0, 0))
    assert len(vit(window_size=2).forward_intermediates(torch.randn(1, 3, 64, 64))[1]) == 3
