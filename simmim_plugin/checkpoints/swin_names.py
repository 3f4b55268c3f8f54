"""Names of a Swin Transformer: of its weights in five code bases (see `swin.py`), and in configs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from simmim_plugin.models.layers.relative_position import INDEX, TABLE

SWINS = ('mmpretrain.SimMIMSwinTransformer', 'mmpretrain.SwinTransformer')  # types
FIRST = {  # a name that every Swin has, by kind
    'plugin': 'stages.0.blocks.0.attn.w_msa.qkv.weight',
    'hf': 'encoder.layers.0.blocks.0.attention.self.query.weight',
    'official': 'layers.0.blocks.0.attn.qkv.weight',
}
PATCHES = 'patch_embed.projection.weight'
POSITIONS = 'absolute_pos_embed'
OPTIONAL = ('mask_token', POSITIONS)
BUFFERS = (INDEX, 'attn_mask')  # follow from the sizes
MMLAB = ('plugin', 'mmpretrain', 'backbone')
# Parts of names, theirs -> ours, replaced in this order, in both directions.
OFFICIAL = {
    'patch_embed.proj.': 'patch_embed.projection.',
    'layers.': 'stages.',
    '.attn.': '.attn.w_msa.',
    '.mlp.fc1.': '.ffn.layers.0.0.',
    '.mlp.fc2.': '.ffn.layers.1.',
}
HF = {
    'embeddings.patch_embeddings.projection.': 'patch_embed.projection.',
    'embeddings.norm.': 'patch_embed.norm.',
    'embeddings.mask_token': 'mask_token',
    'embeddings.position_embeddings': POSITIONS,
    'encoder.layers.': 'stages.',
    '.layernorm_before.': '.norm1.',
    '.layernorm_after.': '.norm2.',
    '.attention.output.dense.': '.attn.w_msa.proj.',
    '.attention.self.': '.attn.w_msa.',
    '.intermediate.dense.': '.ffn.layers.0.0.',
    '.output.dense.': '.ffn.layers.1.',
}
PARTS: dict[str, dict[str, str]] = {'official': OFFICIAL, 'timm': OFFICIAL, 'hf': HF}
# Decoder and classifier in each kind.
HEADS = {
    'official': ('decoder.0', 'head'),
    'timm': (None, 'head.fc'),
    'hf': ('decoder.0', 'classifier'),
    'mmpretrain': ('neck.decoder.0', 'head.fc'),
    'backbone': (None, None),
}
QKV = ('query', 'key', 'value')
BLOCK = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.')
MERGING = re.compile(r'(?<=^stages\.)\d+(?=\.downsample\.)|(?<=^layers\.)\d+(?=\.downsample\.)')
FINAL = re.compile(r'norm\d*\.(weight|bias)')


def find(names: list[str]) -> tuple[str, str]:
    """Kind, and the prefix of the names of the backbone."""
    for kind in FIRST:
        for prefix in prefixes(names, kind):
            if kind == 'plugin':
                theirs = any(other.startswith('neck.decoder.0.') for other in names)
                return 'mmpretrain' if theirs else 'plugin', prefix
            # timm merges patches at the start of a stage, the others at the end.
            ends = kind == 'hf' or f'{prefix}layers.0.downsample.reduction.weight' in names
            return kind if ends else 'timm', prefix
    return '', ''


def prefixes(names: Iterable[str], kind: str) -> list[str]:
    """What stands before the names of each Swin of a kind; usually there is one."""
    first = FIRST[{'mmpretrain': 'plugin', 'timm': 'official'}.get(kind, kind)]
    found = [name.removesuffix(first) for name in names if name.endswith(first)]
    return [prefix for prefix in found if not prefix or prefix.endswith('.')]


def expected(backbone: Iterable[str]) -> list[str]:
    """Names of all weights of a Swin with as many stages and blocks, without mask token and position embedding."""
    depths = depths_of(backbone)
    both = ['patch_embed.projection', 'patch_embed.norm', f'norm{len(depths) - 1}']
    others = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            parts = ('norm1', 'norm2', 'attn.w_msa.qkv', 'attn.w_msa.proj', 'ffn.layers.0.0', 'ffn.layers.1')
            both += [f'stages.{i}.blocks.{j}.{part}' for part in parts]
            others.append(f'stages.{i}.blocks.{j}.attn.w_msa.{TABLE}')
        if i < len(depths) - 1:
            both.append(f'stages.{i}.downsample.norm')
            others.append(f'stages.{i}.downsample.reduction.weight')
    return [f'{name}.{kind}' for name in both for kind in ('weight', 'bias')] + others


def our_name(name: str, kind: str) -> str:
    """Our name of a weight of the backbone of another kind, both without prefix; the final norm is `norm`."""
    for theirs, ours in PARTS.get(kind, {}).items():
        name = name.replace(theirs, ours)
    if name.startswith('layernorm.'):
        return name.removeprefix('layer')
    return MERGING.sub(lambda found: str(int(found[0]) - 1), name) if kind == 'timm' else name


def their_name(name: str, to: str) -> str:
    """Name of a weight of the backbone in another kind, without prefix."""
    if FINAL.fullmatch(name):
        return f'{"layernorm" if to == "hf" else "norm"}.{name.partition(".")[2]}'
    for theirs, ours in PARTS[to].items():
        name = name.replace(ours, theirs)
    return MERGING.sub(lambda found: str(int(found[0]) + 1), name) if to == 'timm' else name


def is_held(name: str, to: str, pretraining: bool, last: int) -> bool:
    """Whether the target has a place for a weight of the backbone."""
    if name == 'mask_token' and (to == 'timm' or (to == 'official' and not pretraining)):
        return False
    return to in MMLAB or not FINAL.fullmatch(name) or name.startswith(f'norm{last}.')  # others: of a detector


def our_head(name: str, kind: str) -> str | None:
    """Our name of a weight of decoder or classifier; None for others."""
    if kind == 'plugin':
        return name if name.startswith(('head.decoder.', 'head.fc.')) else None
    part, _, last = name.rpartition('.')
    decoder, classifier = HEADS[kind]
    return {decoder: f'head.decoder.{last}', classifier: f'head.fc.{last}'}.get(part)


def their_head(name: str, to: str) -> str | None:
    """Name of a weight of decoder or classifier in another kind; None if it has no place for it."""
    part, _, last = name.rpartition('.')
    decoder, classifier = HEADS[to]
    theirs = {'head.decoder': decoder, 'head.fc': classifier}.get(part)
    return theirs and f'{theirs}.{last}'


def depths_of(backbone: Iterable[str]) -> list[int]:
    """Number of blocks in each stage, by bare names of ours."""
    blocks = {(int(found[1]), int(found[2])) for name in backbone if (found := BLOCK.match(name))}
    stages = [stage for stage, _ in blocks]
    return [stages.count(stage) for stage in range(len(set(stages)))]


def masked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config of a `MaskedBackbone` that computes the same as MMPretrain's Swin, for features and fine-tuning."""
    kept = (
        'arch', 'img_size', 'out_indices', 'window_size', 'stage_cfgs', 'patch_cfg', 'patch_size',
        'use_abs_pos_embed', 'pad_small_map', 'drop_path_rate',
    )  # fmt: skip
    return dict(
        type='MaskedBackbone',
        mask_at='tokens',
        img_size=config.get('img_size', 224),
        in_channels=config.get('in_channels', 3),
        model=dict(type='mmpretrain.SwinTransformer', **{key: config[key] for key in kept if key in config}),
    )
