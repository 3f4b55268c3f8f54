"""The recipe at 128 px: what it costs, and that fine-tuning takes it up at 224 px with all blocks."""

import re

import pytest
import torch
from mmengine.registry import HOOKS, MODELS, init_default_scope
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch.utils.flop_counter import FlopCounterMode

from helpers import interp2d
from helpers.paths import ROOT
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.config import load_config
from simmim_plugin.registry import build_part
from simmim_plugin.utils.meta import on_meta

CONFIG, LARGE, FINETUNE = (
    str(ROOT / f'configs/{name}.py') for name in ('simmim_vit-b_128px', 'simmim_vit-b', 'finetune/vit-b_128px_in1k')
)
TABLE = 'relative_position_bias_table'


def flops(config: str) -> int:
    """Of a training step of one image, counted by PyTorch; the model's data have the size of the config's crops."""
    cfg = load_config(config)
    with on_meta():
        model = build_part(cfg.model)
    (size,) = {cfg.crop.size, cfg.model.backbone.img_size}
    patches = size // cfg.model.backbone.patch_size
    with FlopCounterMode(display=False) as counter:
        images, mask = (torch.zeros(1, *shape, device='meta') for shape in ((3, size, size), (patches, patches)))
        model.loss(images, mask)['loss'].backward()
    return counter.get_total_flops()


def test_cost_in_the_header():
    cheap, large = flops(CONFIG), flops(LARGE)
    # By hand: per block 12 D^2 weights and two products of tokens with tokens; the embedding has 16 * 16 * 3 = D
    # inputs, the decoder 4 cells of 9 bins of 3 channels. Backward is twice forward, without the image's gradient.
    width, patches, outputs = 768, 64, 4 * 9 * 3
    forward = 9 * (24 * (patches + 1) * width**2 + 4 * (patches + 1) ** 2 * width)
    forward += 2 * patches * width * (width + outputs)
    assert cheap == pytest.approx(3 * forward - 2 * patches * width**2, rel=1e-3)
    assert cheap <= 0.25 * large
    with open(CONFIG, encoding='utf-8') as file:
        stated = re.search(r'Cost: +(\S+) GFLOP per image, .*: (\S+) of the (\S+) of', file.read())
    assert [float(value) for value in stated.groups()] == [
        round(cheap / 1e9, 1), round(cheap / large, 3), round(large / 1e9, 1)
    ]  # fmt: skip


def test_fine_tuning_at_224_px_with_all_blocks(monkeypatch):
    interp2d.restore(monkeypatch)
    narrow = {f'model.backbone.arch.{name}': n for name, n in dict(embed_dims=32, num_heads=4).items()}
    narrow['model.backbone.arch.feedforward_channels'] = 64
    torch.manual_seed(0)
    theirs = build_part(load_config(CONFIG, narrow).model)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    cfg = load_config(FINETUNE)
    assert cfg.model.backbone.arch == 'base' and cfg.model.backbone.img_size == cfg.crop.scale == 224
    cfg.model.backbone.arch = dict(embed_dims=32, num_layers=12, num_heads=4, feedforward_channels=64)
    cfg.model.head.in_channels = 32
    init_default_scope('mmpretrain')
    ours = MODELS.build(cfg.model)
    checkpoint, asked = {'state_dict': theirs.state_dict()}, HOOKS.build(cfg.default_hooks.checkpoint).asked
    fit_checkpoint(ours, checkpoint, asked)
    ours.load_state_dict(checkpoint['state_dict'])
    backbone, state = ours.backbone.state_dict(), theirs.backbone.state_dict()
    table = resize_rel_pos_bias_table(state[f'rel_pos_bias.{TABLE}'], (14, 14), (27 * 27 + 3, 4))
    for name, value in backbone.items():
        if name.endswith(TABLE):
            expected = torch.zeros_like(value) if name.startswith(('blocks.9.', 'blocks.10.', 'blocks.11.')) else table
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        elif name.startswith('blocks.') and int(name.split('.')[1]) < 9:
            assert torch.equal(value, state[name]), name
    assert (backbone['blocks.9.norm1.weight'] == 1).all() and (backbone['blocks.11.gamma_1'] == 0.1).all()
