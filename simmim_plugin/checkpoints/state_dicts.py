"""Convert state dicts of the same Vision Transformer between five code bases. Pure functions, no files.

`plugin` names are those of our models: `backbone.*` (SimMIMViT) with `head.decoder*` (SimMIM) or `head.fc.*`
(MMPretrain's ImageClassifier), or those of a bare backbone. `official` is the reference implementation
(microsoft/SimMIM, ViT), `timm` is timm's `Beit`, `hf` Hugging Face's `Beit*`, `mmpretrain` MMPretrain's `BEiTViT`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simmim_plugin.checkpoints.files import tensors_of
from simmim_plugin.checkpoints.names import HF, HF_IN_MEMORY, HF_PREFIXES, MMPRETRAIN, inverse, translate
from simmim_plugin.models.fit import grid_of_table, names_of
from simmim_plugin.models.layers.relative_position import INDEX, TABLE, Grid, relative_position_index
from simmim_plugin.utils.arguments import choice

SOURCES = ('plugin', 'official', 'timm', 'hf', 'mmpretrain')
TARGETS = (*SOURCES, 'backbone')
QKV = ('query', 'key', 'value')
FC = {f'head.fc.{kind}': f'head.{kind}' for kind in ('weight', 'bias')}  # a classifier: plugin names -> bare names


# Prefixes of the names of a backbone, and, where it has none, of other parts.
PREFIXES: dict[str, tuple[str, ...]] = {
    'plugin': ('backbone.',),
    'official': ('encoder.',),
    'timm': ('backbone.',),
    'hf': HF_PREFIXES,
    'mmpretrain': ('backbone.',),
}
OTHER_PARTS = ('head.', 'neck.', 'fc.', 'classifier.', 'lm_head.', 'decode_head.', 'auxiliary_head.', 'fpn')


class Converted(NamedTuple):
    """A converted state dict, and the names of the source tensors that it cannot hold."""

    state: dict[str, Tensor]
    left_out: list[str]


def recognise(state: Mapping[str, Any]) -> str:
    """Detect from its names which code base a state dict (or a checkpoint with one) is from.

    A bare `Beit` is 'timm', and one with a mask token 'plugin': their names are the same, so both convert alike.

    Returns:
        'plugin', 'official', 'timm', 'hf' or 'mmpretrain'.

    Raises:
        ValueError: It is from none of them.
    """
    names = list(tensors_of(state))
    bare = {name.removeprefix('backbone.') for name in names}
    if any(name.startswith('encoder.blocks.') for name in names):
        kind = 'official'
    elif any(name.endswith('embeddings.patch_embeddings.projection.weight') for name in names):
        kind = 'hf'
    elif 'layers.0.ln1.weight' in bare and 'layers.0.ffn.layers.0.0.weight' in bare:
        kind = 'mmpretrain'
    elif 'blocks.0.norm1.weight' not in bare or 'patch_embed.proj.weight' not in bare:
        kind = ''
    elif bare != set(names) or 'mask_token' in bare:
        kind = 'plugin'
    else:
        kind = 'official' if any(name.endswith(INDEX) for name in names) else 'timm'
    has_q_bias = any(name.endswith(('attn.q_bias', 'query.bias', 'q_proj.bias')) for name in names)
    has_k_bias = any(name.endswith(('attn.qkv.bias', 'attention.key.bias', 'k_proj.bias')) for name in names)
    if not kind or has_k_bias or not has_q_bias:
        reason = 'it has a key bias, or no query bias' if kind else 'its names are those of no known model'
        if kind and not any(name.endswith('cls_token') for name in names):
            reason += ', and it has no class token (cls_token)'
        raise ValueError(
            f'this is not a state dict of SimMIM for ViT in one of the kinds {", ".join(SOURCES)}: {reason}. It starts '
            f'with {", ".join(names[:4])}'
        )
    return kind


def to_plugin(state: Mapping[str, Any], sure: bool = False) -> Converted:
    """Convert a state dict of any known kind to the names of our models, with the prefix `backbone.`.

    Args:
        state: A state dict, or a checkpoint with one. Tensors are not copied, except Hugging Face's query, key and
            value, which are one tensor here.
        sure: Accept names that other models have, too: without bias tables, those of timm's `Beit` and of EVA are the
            same.

    Returns:
        The state dict, with `head.decoder.*` or `head.fc.*` if there is one, and the names left out, without buffers
        that follow from the grid. They are of other parts than the backbone.

    Raises:
        ValueError: Its kind is unknown, the backbone has something that SimMIMViT cannot represent, or two of its
            tensors would get the same name.
    """
    kind, tensors = recognise(state), tensors_of(state)
    if kind == 'hf':
        tensors = _join_qkv({_hf_disk_name(name): value for name, value in tensors.items()})
    converted: dict[str, Tensor] = {}
    left_out = []
    for name, value in tensors.items():
        if name.endswith(INDEX):
            continue
        ours = _our_name(name, kind)
        if ours is None:
            left_out.append(name)
            continue
        if ours in converted:
            raise ValueError(f'{name} and another tensor would both be named {ours}')
        converted[ours] = value.flatten(1) if ours == 'head.decoder.weight' else value
    _refuse_other_models(kind, tensors, converted, left_out, sure)
    return Converted(converted, left_out)


def _refuse_other_models(
    kind: str, source: Mapping[str, Tensor], converted: Mapping[str, Tensor], left_out: list[str], sure: bool
) -> None:
    """Raise ValueError for backbones that share names with SimMIMViT and compute something else."""
    prefixes = PREFIXES[kind]
    prefixed = any(name.startswith(prefixes) for name in source)
    inside = [name for name in left_out if name.startswith(prefixes if prefixed else '')]
    if strange := [name for name in inside if prefixed or not name.startswith(OTHER_PARTS)]:
        raise ValueError(
            f'SimMIMViT has no place for {names_of(strange)} of the backbone, without which it would compute something '
            'else; it is another model'
        )
    if 'backbone.cls_token' not in converted:
        raise ValueError(
            'it has no class token (cls_token), which SimMIMViT puts in front of the patches of every image; it is '
            'another model'
        )
    for name, value in converted.items():
        hidden = converted.get(name.replace('.fc1.', '.fc2.'), value)
        if name.endswith('.mlp.fc1.weight') and hidden.shape[-1] != value.shape[0]:
            raise ValueError(
                f'{name} has {value.shape[0]} rows and the fc2 behind it {hidden.shape[-1]} columns: a gated MLP '
                '(SwiGLU), which SimMIMViT does not have; it is another model'
            )
    if kind in ('hf', 'mmpretrain') or 'backbone.mask_token' in converted:
        return
    if any(name.endswith(TABLE) for name in converted):
        return
    if 'backbone.pos_embed' not in converted:
        raise ValueError(
            'it has neither relative position bias tables nor a position embedding (pos_embed): a model that computes '
            'positions otherwise (rotary embedding), which SimMIMViT cannot represent'
        )
    if not sure:
        raise ValueError(
            "it has no relative position bias tables, and the names of timm's Beit, which EVA models share: they "
            'compute something else (rotary embedding, norms behind the blocks) or have heads of another width. If it '
            'is a Beit, say how many heads it has: `simmim convert SRC DST --to plugin --num-heads N`'
        )


def from_plugin(state: Mapping[str, Tensor], to: str, grid: Grid | None = None) -> Converted:
    """Convert from the names of our models to another kind's.

    Args:
        state: As `to_plugin` returns it: names with the prefix `backbone.`.
        to: One of `TARGETS`; 'backbone' are the bare names of SimMIMViT, for MMDetection and MMSegmentation.
        grid: Height and width in patches of the bias tables; None: square.

    Returns:
        The state dict, and the names that the target cannot hold.

    Raises:
        ValueError: `to` is unknown, or the target cannot represent the model.
    """
    choice('to', to, TARGETS)
    if to == 'plugin':
        return Converted(dict(state), [])
    if tables := [name for name in state if name.endswith(TABLE)]:
        grid = grid_of_table(tables[0], state[tables[0]], grid)
    if to in ('official', 'hf') and grid is not None and grid[0] != grid[1]:
        why = 'only takes square images' if to == 'official' else 'swaps height and width of bias tables'
        raise ValueError(f'a grid of {grid[0]} x {grid[1]} patches cannot go to {to!r}, which {why}; try timm')
    pretraining = 'head.fc.weight' not in state and 'backbone.fc_norm.weight' not in state
    converted: dict[str, Tensor] = {}
    left_out = []
    for name, value in state.items():
        theirs = _their_name(name, to, pretraining, 'head.fc.weight' in state)
        if theirs is None:
            left_out.append(name)
        elif to == 'hf' and name.endswith('.qkv.weight'):
            parts = zip(QKV, value.chunk(3))
            converted.update({theirs.replace('.qkv.', f'.{part}.'): weight for part, weight in parts})
        elif to == 'official' and name == 'head.decoder.weight':
            converted[theirs] = value[:, :, None, None]  # a 1x1 convolution there
        else:
            converted[theirs] = value
    if to in ('official', 'mmpretrain') and grid is not None:  # buffers of their state dicts
        index = relative_position_index(grid)
        for name in [name for name in converted if name.endswith(TABLE)]:
            converted[name.replace(TABLE, INDEX)] = index.clone()
    return Converted(converted, left_out)


def _our_name(name: str, kind: str) -> str | None:
    """Our name, with `backbone.` or `head.`; None if there is none."""
    if kind == 'plugin' and name.startswith('head.'):
        return FC_INVERSE.get(name, name)
    if kind == 'hf':
        if name.startswith('classifier.'):
            return name.replace('classifier.', 'head.fc.')
        ours = translate(name, HF_INVERSE)
    elif kind == 'mmpretrain':
        if name.startswith('head.fc.'):
            return name
        ours = translate(name.removeprefix('backbone.'), MMPRETRAIN_INVERSE)
    else:
        if name.startswith('decoder.0.'):
            return name.replace('decoder.0.', 'head.decoder.')
        if name in FC_INVERSE:
            return FC_INVERSE[name]
        bare = name.removeprefix('backbone.').removeprefix('encoder.')
        ours = bare if translate(bare, MMPRETRAIN) else None
    return ours and f'backbone.{ours}'


def _their_name(name: str, to: str, pretraining: bool, classifier: bool) -> str | None:
    """Name in the target; None if there is none."""
    bare = name.removeprefix('backbone.')
    if name in FC:
        return {'hf': name.replace('head.fc.', 'classifier.'), 'mmpretrain': name, 'backbone': None}.get(to, FC[name])
    if bare == name:  # a decoder
        linear = name in ('head.decoder.weight', 'head.decoder.bias')
        return name.replace('head.decoder.', 'decoder.0.') if to == 'official' and linear else None
    if bare == 'mask_token' and (to in ('timm', 'mmpretrain') or (to == 'official' and not pretraining)):
        return None
    if to == 'hf':
        theirs = translate(bare, HF)
        return f'beit.{theirs}' if classifier and theirs else theirs
    if to == 'mmpretrain':
        theirs = translate(bare, MMPRETRAIN)
        return theirs and f'backbone.{theirs}'
    return f'encoder.{bare}' if to == 'official' and pretraining else bare


def _hf_disk_name(name: str) -> str:
    """Hugging Face's name on disk, without the name of the model."""
    bare = next((name.removeprefix(prefix) for prefix in HF_PREFIXES if name.startswith(prefix)), name)
    for pattern, replacement in HF_IN_MEMORY:
        if pattern.search(bare):
            return pattern.sub(replacement, bare)
    return bare


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the weights of query, key and value, (D, D) each, to one tensor, (3D, D)."""
    joined: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith('.attention.query.weight'):
            parts = [state[name.replace('.query.', f'.{part}.')] for part in QKV]
            joined[name.replace('.query.', '.qkv.')] = torch.cat(parts)
        elif not name.endswith(('.attention.key.weight', '.attention.value.weight')):
            joined[name] = value
    return joined


FC_INVERSE = inverse(FC)
HF_INVERSE = inverse(HF)
MMPRETRAIN_INVERSE = inverse(MMPRETRAIN)
