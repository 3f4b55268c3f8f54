"""Tiny data and options for the tests of detection and segmentation."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from helpers.paths import ROOT
from simmim_plugin import SimMIM

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
NAMES = ('square', 'bar')
TINY_VIT = {
    'model.backbone.arch': ARCH,
    'model.backbone.img_size': 64,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'train_dataloader.batch_size': 2,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
    'default_hooks.logger.interval': 1,
}


def make_dense(folder: Path, counts: dict[str, int], side: int = 96) -> Path:
    """Images of squares and bars, with COCO annotations, masks (0 is background) and classes.txt."""
    rng = np.random.default_rng(0)
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'classes.txt').write_text('background\n' + '\n'.join(NAMES) + '\n')
    for part, count in counts.items():
        images, annotations = [], []
        for kind in ('images', 'masks'):
            (folder / kind / part).mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(100, 140, (side, side + 16, 3), dtype=np.uint8)
            mask = np.zeros(picture.shape[:2], np.uint8)
            for k, (w, h) in enumerate(((24, 24), (48, 10))):
                x, y = int(rng.integers(0, side - w)), int(rng.integers(0, side - h))
                picture[y : y + h, x : x + w] = (250, 30 + 200 * k, 30)
                mask[y : y + h, x : x + w] = k + 1
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    dict(id=len(annotations) + 1, image_id=i, category_id=5 + 3 * k, bbox=[x, y, w, h], area=w * h,
                         iscrowd=0, segmentation=[polygon])
                )  # fmt: skip
            Image.fromarray(picture).save(folder / 'images' / part / f'{i}.jpg', quality=95)
            Image.fromarray(mask).save(folder / 'masks' / part / f'{i}.png')
            images.append(dict(id=i, file_name=f'{i}.jpg', height=side, width=side + 16))
        categories = [dict(id=5 + 3 * k, name=name) for k, name in enumerate(NAMES)]
        text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
        (folder / 'annotations' / f'{part}.json').write_text(text)
    return folder


def swapped_config(guide: str, replaced: dict[str, str]) -> str:
    """The config in a guide that replaces the backbone, at most ten lines, with some values replaced."""
    text = (ROOT / 'docs' / guide).read_text(encoding='utf-8')
    (block,) = [block for block in re.findall(r'```python\n(.+?)```', text, re.DOTALL) if '_base_ = ' in block]
    assert block.count('\n') <= 10
    for old, new in replaced.items():
        assert old in block
        block = block.replace(old, new)
    return block


def save_pretraining(path: Path, **changes: Any) -> SimMIM:
    """A checkpoint of a pretraining at 64 px, of random weights."""
    backbone = dict(type='SimMIMViT', arch=ARCH, img_size=64, patch_size=16) | changes
    torch.manual_seed(0)
    model = SimMIM(backbone=backbone)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    torch.save(
        {'state_dict': model.state_dict(), 'simmim_plugin': dict(model=dict(backbone=backbone), pipeline=[])}, path
    )
    return model


def assert_loaded(theirs: SimMIM, state: dict[str, torch.Tensor]) -> None:
    """Check that a larger model's state dict has all of a pretrained backbone, its table in every block."""
    for name, value in theirs.backbone.state_dict().items():
        places = [name]
        if name == 'rel_pos_bias.relative_position_bias_table':
            blocks = range(theirs.backbone.num_layers)
            places = [f'blocks.{i}.attn.relative_position_bias_table' for i in blocks]
        for place in places:
            assert torch.equal(state[f'backbone.{place}'], value), place


def count_calls(module: torch.nn.Module) -> list[int]:
    """A list that grows with each forward pass of the module, recomputed ones included."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def config(name: str) -> str:
    """Path of a config."""
    return str(ROOT / 'configs' / name)
