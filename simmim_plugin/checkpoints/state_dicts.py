"""Convert state dicts of the same Vision Transformer between code bases. Pure functions, no files.

`plugin` names are those of our models: `backbone.*` (SimMIMViT) with `head.decoder*` (SimMIM) or `head.fc.*`
(MMPretrain's ImageClassifier), or those of a bare backbone. `official` is the reference implementation
(microsoft/SimMIM, ViT). A model with a position embedding and without bias tables is an ordinary ViT, all others are
Beits; so the classes of a target are:

- `timm`: `Beit`, `VisionTransformer`;
- `hf`: `Beit*`, `ViT*`, and with LayerScale or registers `Dinov2Model` and `Dinov2WithRegistersModel` (`family_of`);
- `mmpretrain`: `BEiTViT`, `VisionTransformer`.

`families.py` recognises what a state dict is from, `names.py` has the names, `layouts.py` splits and joins tensors.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from simmim_plugin.checkpoints.families import NOT_LINEAR, head_name, kind_of, plain_name
from simmim_plugin.checkpoints.files import tensors_of
from simmim_plugin.checkpoints.layouts import has_key_bias, is_ordinary, to_ours, to_theirs, with_register_positions
from simmim_plugin.checkpoints.names import (
    BEIT,
    HF_BEIT,
    HF_DINOV2,
    HF_VIT,
    MMPRETRAIN_BEIT,
    MMPRETRAIN_VIT,
    PLUGIN,
    VIT,
    table_of,
    translate,
)
from simmim_plugin.checkpoints.refusals import (
    refuse_deit3,
    refuse_names,
    refuse_other_models,
    refuse_parts,
    refuse_shapes,
)
from simmim_plugin.models.fit import PATCHES, grid_of_table
from simmim_plugin.models.layers.relative_position import INDEX, TABLE, Grid, relative_position_index
from simmim_plugin.utils.arguments import choice

TARGETS = ('plugin', 'official', 'timm', 'hf', 'mmpretrain', 'backbone')
BACKBONE = 'backbone.'


class Out(NamedTuple):
    """A family that is written."""

    table: dict[str, str]  # names
    layout: str  # see `to_theirs`
    prefix: str = ''  # of the backbone, if there is a classifier or decoder


# Target and class -> how it is written; see `family_of`.
OUT = {
    ('official', 'SimMIM'): Out({name: name for name in PLUGIN if name != 'reg_token'}, 'beit'),
    ('backbone', 'SimMIMViT'): Out(PLUGIN, 'beit'),
    ('timm', 'Beit'): Out(BEIT, 'beit'),
    ('timm', 'VisionTransformer'): Out({k: v for k, v in VIT.items() if k != 'dist_token'}, 'vit'),
    ('hf', 'Beit'): Out(HF_BEIT, 'hf_beit', 'beit.'),
    ('hf', 'ViT'): Out(HF_VIT, 'hf_vit', 'vit.'),
    ('hf', 'Dinov2'): Out(HF_DINOV2, 'hf_dinov2', 'dinov2.'),
    ('hf', 'Dinov2WithRegisters'): Out(HF_DINOV2, 'hf_dinov2', 'dinov2_with_registers.'),
    ('mmpretrain', 'BEiTViT'): Out({k: v for k, v in MMPRETRAIN_BEIT.items() if k != 'mask_token'}, 'beit'),
    ('mmpretrain', 'VisionTransformer'): Out(MMPRETRAIN_VIT, 'vit'),
}


class Converted(NamedTuple):
    """A converted state dict, and the names of the source tensors that it cannot hold."""

    state: dict[str, Tensor]
    left_out: list[str]


def recognise(state: Mapping[str, Any]) -> str:
    """Detect from its names which code base a state dict (or a checkpoint with one) is from.

    A bare `Beit` is 'timm', and one with a mask token 'plugin': their names are the same, so both convert alike.

    Returns:
        'plugin', 'official' (microsoft/SimMIM), 'timm', 'mae' (with its decoder), 'dinov2' (original names),
        'torchvision', 'hf' or 'mmpretrain'.

    Raises:
        ValueError: It is from none of them.
    """
    return kind_of(tensors_of(state))


def to_plugin(
    state: Mapping[str, Any],
    sure: bool = False,
    like: Grid | None = None,
    img_size: tuple[int, int] | None = None,
    assumed: list[str] | None = None,
) -> Converted:
    """Convert a state dict of any known kind to the names of our models, with the prefix `backbone.`.

    Args:
        state: A state dict, or a checkpoint with one. Tensors are not copied, except those that are split there and
            one tensor here.
        sure: Accept names that other models have, too: without bias tables, those of timm's `Beit` and of EVA are the
            same.
        like: Height and width in patches of the model that it is for, if known: see `layouts.to_ours`.
        img_size: The same in pixels, where `like` is None.
        assumed: Gets lines about what neither the weights nor these say.

    Returns:
        The state dict, with `head.decoder.*` or `head.fc.*` if there is one, and the names left out, without buffers
        that follow from the grid and without biases of keys, which change nothing. They are of other parts than the
        backbone.

    Raises:
        ValueError: Its kind is unknown, the backbone has something that SimMIMViT cannot represent or lacks something,
            or two of its tensors would get the same name.
    """
    tensors = tensors_of(state)
    kind = kind_of(tensors)
    plain = {name: plain_name(name, kind) for name in tensors if not name.endswith(INDEX)}
    table = table_of(kind, plain.values())
    found: dict[str, Tensor] = {}
    others = []
    for name, bare in plain.items():
        ours = translate(bare, table)
        if ours is None:
            others.append(name)
        elif ours in found:
            raise ValueError(f'{name} and another tensor would both be named {ours}')
        else:
            found[ours] = tensors[name]
    refuse_names(kind, plain, others)
    refuse_shapes(found)
    if like is None and img_size is not None and PATCHES in found:
        like = grid_like(img_size, found[PATCHES].shape[-1])
    backbone, ordinary = to_ours(found, kind, like, [] if assumed is None else assumed), has_key_bias(found)
    refuse_other_models(kind, backbone, sure, ordinary)
    if kind == 'mmpretrain':
        refuse_deit3(found, backbone)
    refuse_parts(backbone, ordinary)
    heads = _heads(kind, {name: tensors[name] for name in others}, backbone)
    result = {BACKBONE + name: value for name, value in backbone.items()}
    for ours, name in heads.items():
        result[ours] = tensors[name].flatten(1) if ours == 'head.decoder.weight' else tensors[name]
    return Converted(result, [name for name in others if name not in heads.values()])


def grid_like(img_size: tuple[int, int], patch: int) -> Grid | None:
    """Height and width in patches; None if the sides are no multiples of the patch."""
    return None if any(side % patch for side in img_size) else (img_size[0] // patch, img_size[1] // patch)


def _heads(kind: str, others: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, str]:
    """What there is of a classifier or decoder like ours: our names -> those in the file."""
    heads = {ours: name for name in others if (ours := head_name(name, kind)) is not None}
    if kind == 'plugin':
        return heads
    channels, patch = backbone[PATCHES].shape[1:3]
    width = backbone['cls_token'].shape[-1]
    for part, rows in (('head.fc', None), ('head.decoder', channels * patch**2)):
        weight = others.get(heads.get(f'{part}.weight', ''))
        fits = weight is not None and weight.ndim > 1 and weight.shape[1] == width and rows in (None, weight.shape[0])
        if not fits or (part == 'head.fc' and any(NOT_LINEAR.search(name) for name in others)):
            heads = {ours: name for ours, name in heads.items() if not ours.startswith(f'{part}.')}
    return heads


def family_of(state: Mapping[str, Tensor], to: str) -> str:
    """Class of the target that holds a model, by its name.

    For Hugging Face, an ordinary ViT is a `ViT`. With LayerScale or registers it is a `Dinov2` or
    `Dinov2WithRegisters`, which have no classifier of the class token alone and no mean pooling: without registers,
    these are a `Beit`, which may have a position embedding and no bias tables.

    Args:
        state: As `to_plugin` returns it.
        to: One of `TARGETS`.

    Raises:
        ValueError: None holds it.
    """
    registers, pooled = (f'{BACKBONE}{name}' in state for name in ('reg_token', 'fc_norm.weight'))
    ordinary = is_ordinary(state)
    if registers and (to in ('official', 'mmpretrain') or (not ordinary and to in ('timm', 'hf'))):
        raise ValueError(f'the model has register tokens (reg_token), which no class of {to!r} has with its positions')
    if to == 'hf' and ordinary:
        if registers and pooled:
            raise ValueError("the model has register tokens and mean pooling, which no class of 'hf' has; try timm")
        scaled, classifier = f'{BACKBONE}blocks.0.gamma_1' in state, 'head.fc.weight' in state
        if registers:
            return 'Dinov2WithRegisters'
        if pooled or (scaled and classifier):
            return 'Beit'
        return 'Dinov2' if scaled else 'ViT'
    ordinary &= to != 'hf'
    classes = {'timm': ('Beit', 'VisionTransformer'), 'hf': ('Beit',), 'mmpretrain': ('BEiTViT', 'VisionTransformer')}
    return {'official': 'SimMIM', 'backbone': 'SimMIMViT'}.get(to) or classes[to][ordinary]


def from_plugin(state: Mapping[str, Tensor], to: str, grid: Grid | None = None) -> Converted:
    """Convert from the names of our models to another kind's.

    Args:
        state: As `to_plugin` returns it: names with the prefix `backbone.`.
        to: One of `TARGETS`; 'backbone' are the bare names of SimMIMViT, for MMDetection and MMSegmentation.
        grid: Height and width in patches of the bias tables; None: square.

    Returns:
        The state dict, and the names that the target cannot hold. Ordinary ViTs get a bias of the keys, zeros.

    Raises:
        ValueError: `to` is unknown, or the target cannot represent the model.
    """
    choice('to', to, TARGETS)
    if to == 'plugin':
        return Converted(dict(state), [])
    if tables := [name for name in state if name.endswith(TABLE)]:
        grid = grid_of_table(tables[0], state[tables[0]], grid)
    if to in ('official', 'hf') and grid is not None and grid[0] != grid[1]:
        why = 'swaps height and width of bias tables' if to == 'hf' and tables else 'only takes square images'
        raise ValueError(f'a grid of {grid[0]} x {grid[1]} patches cannot go to {to!r}, which {why}; try timm')
    family = family_of(state, to)
    out = OUT[to, family]
    pretraining = 'head.fc.weight' not in state and 'backbone.fc_norm.weight' not in state
    heads = _their_heads(state, to, family)
    own = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    masked = {'official': pretraining, 'hf': family != 'ViT' or 'decoder.0.weight' in heads.values()}.get(to, True)
    left_out = [BACKBONE + name for name in ('mask_token',) if not masked and own.pop(name, None) is not None]
    if family == 'VisionTransformer' and to == 'timm':
        with_register_positions(own)
    prefix = {'official': 'encoder.' * pretraining, 'mmpretrain': BACKBONE, 'hf': out.prefix * bool(heads)}.get(to, '')
    converted: dict[str, Tensor] = {}
    for name, value in to_theirs(own, out.layout).items():
        theirs = translate(name, out.table)
        if theirs is None:
            left_out.append(BACKBONE + name)
        else:
            converted[prefix + theirs] = value
    for name, theirs in heads.items():  # a decoder is a 1x1 convolution there
        converted[theirs] = state[name][:, :, None, None] if name == 'head.decoder.weight' else state[name]
    left_out += [name for name in state if not name.startswith(BACKBONE) and name not in heads]
    if to in ('official', 'mmpretrain') and grid is not None:  # buffers of their state dicts
        index = relative_position_index(grid)
        for name in [name for name in converted if name.endswith(TABLE)]:
            converted[name.replace(TABLE, INDEX)] = index.clone()
    return Converted(converted, left_out)


def _their_heads(state: Mapping[str, Tensor], to: str, family: str) -> dict[str, str]:
    """Names of a classifier, and of a decoder of one layer, in the target, as far as it has them."""
    owner = {'official': 'head', 'timm': 'head', 'hf': 'classifier', 'mmpretrain': 'head.fc'}.get(to)
    owners = {'head.fc': None if family.startswith('Dinov2') else owner}
    if to == 'official' or family == 'ViT':
        owners['head.decoder'] = 'decoder.0'
    names = {
        f'{ours}.{kind}': f'{theirs}.{kind}' for ours, theirs in owners.items() for kind in ('weight', 'bias') if theirs
    }
    return {ours: theirs for ours, theirs in names.items() if ours in state}


def decodes_pixels(state: Mapping[str, Tensor]) -> bool:
    """Whether a decoder, if there is one, has as many outputs as a patch has values; other targets have others."""
    decoders = sorted(name for name in state if name.startswith('head.decoder.') and name.endswith('.weight'))
    return not decoders or state[decoders[-1]].shape[0] == state[BACKBONE + PATCHES][0].numel()
