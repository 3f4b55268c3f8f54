"""`SimMIMViT.forward_intermediates` against timm's, against `forward`, and attention against a calculation by hand."""

import pytest
import torch
from timm.models.beit import Beit

from helpers.models import TINY
from simmim_plugin import SimMIMViT
from simmim_plugin.models.layers.relative_position import bias_from_table, resize_table

BIASES = dict(
    shared=dict(use_shared_rel_pos_bias=True),
    own=dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True),
    none=dict(use_shared_rel_pos_bias=False, use_abs_pos_embed=True),
)
GRID = (3, 5)
IMAGES = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))


def backbone(**kwargs: object) -> SimMIMViT:
    """A tiny backbone with random weights, bias tables included."""
    torch.manual_seed(0)
    model = SimMIMViT(**{k: v for k, v in TINY.items() if k != 'type'} | kwargs).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize('indices', [None, 1, 2, [0, 2], (-2,)])
@pytest.mark.parametrize('prefix', [False, True])
def test_gives_what_timms_beit_gives(indices, prefix):
    ours = backbone(img_size=(48, 80))
    theirs = Beit(
        img_size=(48, 80), patch_size=16, embed_dim=48, depth=3, num_heads=4, init_values=0.1, num_classes=0,
        use_shared_rel_pos_bias=True, use_abs_pos_emb=False, global_pool='token',
    ).eval()  # fmt: skip
    state = {name: value for name, value in ours.state_dict().items() if name != 'mask_token'}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith('relative_position_index') for name in missing)
    with torch.no_grad():
        found = ours.forward_intermediates(IMAGES, indices, return_prefix_tokens=prefix)
        expected = theirs.forward_intermediates(IMAGES, indices, return_prefix_tokens=prefix)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # same nesting, shapes and values


@pytest.mark.parametrize('kind', BIASES)
def test_maps_are_the_outputs_of_forward_but_for_the_final_norm(kind):
    model = backbone(out_indices=(0, 1, 2), **BIASES[kind])
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(IMAGES)
        outputs = model(IMAGES)
    for found, output in zip(maps[:2], outputs[:2], strict=True):
        torch.testing.assert_close(found, output, rtol=0, atol=0)
    torch.testing.assert_close(model.norm(maps[2].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), outputs[2])
    torch.testing.assert_close(tokens[:, 1:].transpose(1, 2).unflatten(2, GRID), outputs[2], rtol=0, atol=0)


@pytest.mark.parametrize('kind', BIASES)
def test_attention_is_the_softmax_of_queries_keys_and_bias(kind):
    model = backbone(**BIASES[kind])
    inputs = {}  # of each block's attention
    for block in model.blocks:
        block.attn.register_forward_hook(lambda attn, args, output: inputs.update({attn: args}))
    row, column = 2, 3
    _, entries = model.forward_intermediates(IMAGES, attention_of=(row, column))
    assert len(entries) == len(inputs) == 3
    for attn, (_, attention) in zip(inputs, entries):
        assert attention.shape == (2, 4, *GRID)
        x = inputs[attn][0][1].detach()  # (16, 48) of the second image
        q, k, v = (part.view(16, 4, 12) for part in (x @ attn.qkv.weight.T).chunk(3, dim=1))
        q, v = q + attn.q_bias.view(4, 12), v + attn.v_bias.view(4, 12)
        table = attn.relative_position_bias_table if kind == 'own' else getattr(
            model.rel_pos_bias, 'relative_position_bias_table', None)  # fmt: skip
        bias = 0 if table is None else bias_from_table(resize_table(table, (4, 4), GRID), GRID)
        full = torch.stack([q[:, i] @ k[:, i].T / 12**0.5 for i in range(4)])  # (heads, 16, 16)
        full = (full + bias).softmax(dim=-1)
        token = 1 + row * 5 + column
        torch.testing.assert_close(attention[1], full[:, token, 1:].reshape(4, *GRID))
        torch.testing.assert_close(attention[1].sum((1, 2)) + full[:, token, 0], torch.ones(4))
        # These weights are what the block itself uses.
        mixed = torch.stack([full[i] @ v[:, i] for i in range(4)], dim=1).reshape(16, 48)
        torch.testing.assert_close(attn(*inputs[attn])[1], attn.proj(mixed), rtol=1e-4, atol=1e-4)


def test_map_class_token_and_attention_at_once():
    _, ((features, cls_token, attention),) = backbone().forward_intermediates(
        IMAGES, indices=[1], return_prefix_tokens=True, attention_of=(0, 4)
    )
    assert features.shape == (2, 48, *GRID) and cls_token.shape == (2, 1, 48) and attention.shape == (2, 4, *GRID)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(attention_of=(3, 0)), r'attention_of=\(3, 0\) is outside the 3 x 5 patches; give row 0 ... 2, column 0'),
        (dict(attention_of=(0, -1)), r'attention_of=\(0, -1\) is outside'),
        (dict(indices=[3]), 'indices=3 must be a whole number from -3 to 2'),
        (dict(indices=4), 'indices=-4 must be a whole number from -3 to 2'),
        (dict(indices=[2, 0]), r'indices=\(2, 0\) must be one or more blocks, rising'),
    ],
)
def test_blocks_and_patches_outside_the_model_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone().forward_intermediates(IMAGES, **arguments)
    with pytest.raises(ValueError, match='input of 48 x 70 px: both sides must be multiples of the patch, 16 px'):
        backbone().forward_intermediates(IMAGES[..., :70])
