"""Refuse a backbone that SimMIMViT does not represent exactly, or that is not whole, with the names that say so."""

import re
from collections.abc import Mapping
from itertools import product

from torch import Tensor

from simmim_plugin.checkpoints.families import ANY_BACKBONE, OTHER_PARTS, PREFIXES, different_part, listed
from simmim_plugin.models.layers.relative_position import TABLE

PATCHES = 'patch_embed.proj.weight'
PAIRS = ('norm1', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')  # with weight and bias, in every block
BLOCK = (
    'attn.qkv.weight',
    'attn.q_bias',
    'attn.v_bias',
    *(f'{x}.{kind}' for x in PAIRS for kind in ('weight', 'bias')),
)
QKV = ('q.weight', 'k.weight', 'v.weight')
AXES = {'cls_token': 3, 'pos_embed': 3, 'reg_token': 3, 'dist_token': 3, PATCHES: 4}  # numbers of dimensions
MATRIX = re.compile(rf'(attn\.|mlp\.)[\w.]*weight$|{TABLE}$')
SCALES = ('gamma_1', 'gamma_2')


def refuse_names(kind: str, plain: Mapping[str, str], others: list[str]) -> None:
    """Raise ValueError if the backbone has parameters that SimMIMViT has no place for.

    Args:
        kind: See `recognise`.
        plain: Names in the file -> names without prefixes.
        others: Those of the file that have no name of ours.
    """
    prefixes = PREFIXES.get(kind, ('backbone.',))
    prefixed = any(name.startswith(prefixes) for name in plain)
    known: tuple[str, ...] = ('pooler.dense.',) if prefixed else OTHER_PARTS
    known += ('mask_token',) if kind == 'mae' else ()  # its decoder's
    inside = [name for name in others if not prefixed or name.startswith(prefixes)]
    if strange := [name for name in inside if not plain[name].startswith(known)]:
        part = different_part(strange)
        raise ValueError(
            f'SimMIMViT has no place for {listed(strange)} of the backbone{f" ({part})" if part else ""}, without '
            f'which it would compute something else; it is another model; {ANY_BACKBONE}'
        )


def refuse_shapes(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError without a class token, and for tensors of other shapes than a ViT's; names as for `to_ours`."""
    if 'cls_token' not in state:
        raise ValueError(
            'it has no class token (cls_token), which SimMIMViT puts in front of the patches of every image; it is '
            f'another model; {ANY_BACKBONE}'
        )
    width = state['cls_token'].shape[-1] if state['cls_token'].ndim else 0
    for name, value in state.items():
        last = name.rpartition('.attn.')[2]
        axes = AXES.get(name, 2 if MATRIX.search(name) else 1)
        right = value.numel() > 0 and (value.ndim == axes or name == 'mask_token')
        right &= last not in QKV or value.shape == (width, width)
        if not right or (last == 'qkv.bias' and value.shape != (3 * width,)):
            raise ValueError(f'{name} is of shape {tuple(value.shape)}, which that of no ViT with {width} channels is')


def refuse_other_models(kind: str, state: Mapping[str, Tensor], sure: bool, ordinary: bool) -> None:
    """Raise ValueError for backbones that share names with SimMIMViT and compute something else.

    Args:
        kind: See `recognise`.
        state: The backbone, by our names without a prefix.
        sure: See `to_plugin`.
        ordinary: It has biases of keys.
    """
    for name, value in state.items():
        hidden = state.get(name.replace('.fc1.', '.fc2.'), value)
        if name.endswith('.mlp.fc1.weight') and hidden.shape[-1] != value.shape[0]:
            raise ValueError(
                f'{name} has {value.shape[0]} rows and the fc2 behind it {hidden.shape[-1]} columns: a gated MLP '
                f'(SwiGLU), which SimMIMViT does not have; it is another model; {ANY_BACKBONE}'
            )
    if any(name.endswith(TABLE) for name in state):
        return
    if not ordinary and (kind in ('hf', 'mmpretrain') or 'mask_token' in state):
        return
    if 'pos_embed' not in state:
        raise ValueError(
            'it has neither relative position bias tables nor a position embedding (pos_embed): a model that computes '
            f'positions otherwise (rotary embedding), which SimMIMViT cannot represent; {ANY_BACKBONE}'
        )
    if not sure and not ordinary and 'blocks.0.attn.q_bias' in state:
        raise ValueError(
            "it has no relative position bias tables, and the names of timm's Beit, which EVA models share: they "
            'compute something else (rotary embedding, norms behind the blocks) or have heads of another width. If it '
            'is a Beit, say how many heads it has: `simmim convert SRC DST --to plugin --num-heads N`'
        )


def refuse_deit3(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise ValueError for MMPretrain's `DeiT3`, the only one of its ViTs whose class token has no position.

    Args:
        found: The backbone by our names, with the position embedding of the file.
        ours: As SimMIMViT has it.
    """
    if 'pos_embed' in found and ours['pos_embed'].shape[1] > found['pos_embed'].shape[1]:
        raise ValueError(
            "it is MMPretrain's DeiT3, whose blocks apply ln1 twice and never ln2 (1.3.6): SimMIMViT computes DeiT III "
            f"as published; take timm's deit3_* weights; {ANY_BACKBONE}"
        )


def refuse_parts(state: Mapping[str, Tensor], ordinary: bool) -> None:
    """Raise ValueError unless a backbone is whole, and its blocks are alike; see `refuse_other_models`.

    A Beit may come without the norm behind its blocks, from a segmenter of Hugging Face.
    """
    numbers = dict.fromkeys(name.split('.')[1] for name in state if name.startswith('blocks.'))
    counted = [str(i) for i in range(len(numbers))]
    if odd := [number for number in numbers if number not in counted]:
        raise ValueError(f'it has {len(numbers)} blocks, and among them blocks.{odd[0]}: numbers are those from 0 on')
    names = dict.fromkeys(name.split('.', 2)[2] for name in state if name.startswith('blocks.'))  # in any block
    scaled = any(name.endswith(SCALES) for name in names)
    block = dict.fromkeys((*BLOCK, *SCALES, *names) if scaled else (*BLOCK, *names))
    wanted = ['cls_token', PATCHES, 'patch_embed.proj.bias']
    wanted += [f'blocks.{i}.{name}' for i in counted or '0' for name in block]
    pairs = {norm: [f'{norm}.weight', f'{norm}.bias'] for norm in ('norm', 'fc_norm')}
    norms = [norm for norm, pair in pairs.items() if set(pair) & state.keys()] or ['norm'] * ordinary
    wanted += [name for norm in norms for name in pairs[norm]]
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(
            f'the backbone lacks {listed(missing)}, which every SimMIMViT has: half a model is not loaded; if its '
            f'author built it so (a bias left out, say), it is another model; {ANY_BACKBONE}'
        )
    for i, name in product(counted, block):
        ours, first = state[f'blocks.{i}.{name}'].shape, state[f'blocks.0.{name}'].shape
        if ours != first:
            raise ValueError(f'blocks.{i}.{name} is of shape {tuple(ours)}, and that of the first block {tuple(first)}')
    if len(norms) > 1:
        raise ValueError(
            'the backbone has two norms behind its blocks, norm (of all tokens) and fc_norm (of their mean), one after '
            'the other; SimMIMViT has either'
        )
