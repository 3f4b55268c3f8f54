"""Weights of Swin Transformers: the names of five code bases, and windows of another size.

Our names are those of MMPretrain's and MMDetection's Swin, which are the models used here, with the prefix `backbone.`;
a decoder is `head.decoder.*`, a classifier `head.fc.*`. The other kinds are 'official' (microsoft/SimMIM and
microsoft/Swin-Transformer), 'timm', 'hf' (Hugging Face) and 'mmpretrain' (with the decoder of its own SimMIM).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from simmim_plugin.checkpoints.swin_names import (
    BUFFERS,
    FINAL,
    MMLAB,
    OPTIONAL,
    PATCHES,
    POSITIONS,
    QKV,
    depths_of,
    expected,
    find,
    is_held,
    our_head,
    our_name,
    prefixes,
    their_head,
    their_name,
)
from simmim_plugin.models.differences import differences, names_of
from simmim_plugin.models.fit import NOTHING, Asked, Fitted, adapt_channels
from simmim_plugin.models.layers.relative_position import (
    CLS_ROWS,
    INDEX,
    TABLE,
    relative_position_index,
    resize_table,
)

EPS = 1e-5  # of all norms


def kind_of(names: Iterable[str]) -> str:
    """Which code base the names of a Swin are from: 'plugin' or another of the module's; '' for other models."""
    return find(list(names))[0]


def prefix_in(model: Collection[str]) -> str | None:
    """Prefix of the names of a Swin's weights in a model of MMPretrain or MMDetection; None without one.

    Swin V2 has some of its names, and is another model.
    """
    kind, prefix = find(list(model))
    blocks = [name for name in model if name.startswith(f'{prefix}stages.')]
    second = any(name.endswith('.logit_scale') or '.cpb_mlp.' in name for name in blocks)
    return prefix if kind in MMLAB and not second else None


def check_depths(config: Mapping[str, Any], state: Iterable[str]) -> None:
    """Raise ValueError if the config of a Swin in a file has other depths than the weights, before it is built."""
    arch = config.get('arch')
    given = arch.get('depths') if isinstance(arch, Mapping) else None
    found = depths_of(name.removeprefix('backbone.') for name in state)
    if given is not None and list(given) != found:
        raise ValueError(f'its config has model.backbone.arch.depths={given}, the weights {found}')


def check_stated(saved: Any) -> None:
    """Raise ValueError for a model of Hugging Face (`Saved`) with another activation or epsilon than ours."""
    saved.check_activation()
    if (eps := saved.part('backbone').get('norm_eps', EPS)) != EPS:
        raise ValueError(
            f'layer_norm_eps={eps!r} in config.json, and the norms of Swin in MMPretrain, MMDetection, timm and the '
            f'official code have {EPS:g}; it is another model'
        )


def to_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Convert the weights of a Swin of any kind to our names.

    Args:
        state: A state dict that `kind_of` knows.

    Returns:
        The weights, without buffers, and the names left out, which are of other parts than backbone, decoder and
        classifier.

    Raises:
        ValueError: The backbone has a part that this Swin does not have, or lacks one; or there are several.
    """
    kind, prefix = find(list(state))
    if len(copies := prefixes(state, kind)) > 1:
        raise ValueError(
            f'it has the weights of a Swin Transformer {len(copies)} times, with the prefixes '
            f'{", ".join(map(repr, copies))}; save one of them alone: {{k: v for k, v in state_dict.items() if '
            f'k.startswith({copies[0]!r})}}'
        )
    tensors = {name: value for name, value in state.items() if not name.endswith(BUFFERS)}
    tensors = _joined(tensors) if kind == 'hf' else tensors
    heads: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {}
    left_out = []
    for name, value in tensors.items():
        if (ours := our_head(name, kind)) is not None:
            heads[ours] = value.flatten(1) if ours == 'head.decoder.weight' else value
        elif name.startswith(prefix) and not name.startswith('head.'):
            backbone[our_name(name.removeprefix(prefix), kind)] = value
        else:
            left_out.append(name)
    wanted, last = expected(backbone), len(depths_of(backbone)) - 1
    backbone = {f'norm{last}{name[4:]}' if name.startswith('norm.') else name: x for name, x in backbone.items()}
    strange = [x for x in backbone if x not in wanted and x not in OPTIONAL and not FINAL.fullmatch(x)]
    missing = [name for name in wanted if name not in backbone]
    if strange or missing:
        texts = [f'it has {names_of(strange)}'] * bool(strange) + [f'it lacks {names_of(missing)}'] * bool(missing)
        raise ValueError(
            f'it has the names of a Swin Transformer, but {" and ".join(texts)}: another model, such as Swin V2, or a '
            'part of one'
        )
    if kind not in MMLAB:
        backbone = {name: _reordered(name, value, first=False) for name, value in backbone.items()}
    return {f'backbone.{name}': value for name, value in backbone.items()} | heads, left_out


def from_ours(state: Mapping[str, Tensor], to: str) -> tuple[dict[str, Tensor], list[str]]:
    """Convert from our names to those of another kind, or of the bare backbone.

    Args:
        state: As `to_ours` returns it.
        to: 'official', 'timm', 'hf', 'mmpretrain', 'backbone' or 'plugin'.

    Returns:
        The weights, and the names that the target does not hold.
    """
    if to == 'plugin':
        return _with_indices(state), []
    backbone = {name.removeprefix('backbone.'): x for name, x in state.items() if name.startswith('backbone.')}
    last = len(depths_of(backbone)) - 1
    pretraining = 'head.fc.weight' not in state and 'mask_token' in backbone
    prefix = {'official': 'encoder.' * pretraining, 'hf': 'swin.', 'mmpretrain': 'backbone.'}.get(to, '')
    left_out = [f'backbone.{name}' for name in backbone if not is_held(name, to, pretraining, last)]
    converted: dict[str, Tensor] = {}
    for name in [name for name in state if not name.startswith('backbone.')]:
        if (theirs := their_head(name, to)) is None:
            left_out.append(name)
        else:
            converted[theirs] = state[name][:, :, None, None] if name == 'head.decoder.weight' else state[name]
    for bare, value in backbone.items():
        if to in MMLAB:
            converted[prefix + bare] = value
        elif is_held(bare, to, pretraining, last):
            theirs = prefix + their_name(bare, to)
            if to == 'hf' and '.qkv.' in theirs:
                converted |= {theirs.replace('.qkv.', f'.{x}.'): part for x, part in zip(QKV, value.chunk(3))}
            else:
                converted[theirs] = _reordered(bare, value, first=True)
    return converted if to == 'timm' else _with_indices(converted), left_out


def window_of(name: str, table: Tensor) -> int:
    """Side of the windows of a bias table, ((2w-1)^2, heads).

    Raises:
        ValueError: They are not square.
    """
    side = (math.isqrt(table.shape[0]) + 1) // 2
    if table.ndim != 2 or table.shape[0] != (2 * side - 1) ** 2:
        raise ValueError(f'{name} of shape {tuple(table.shape)} has {table.shape[0]} rows, which no square window has')
    return side


def side_of(positions: Tensor) -> int:
    """Patches in a side of a position embedding, (1, rows, channels).

    Raises:
        ValueError: They are no square.
    """
    side = math.isqrt(positions.shape[1])
    if side**2 != positions.shape[1]:
        raise ValueError(
            f'{POSITIONS} has {positions.shape[1]} rows, which no square of patches has; give the size of its images '
            '(`simmim convert`: --img-size HEIGHT WIDTH; `load_from`: the same in the model)'
        )
    return side


def fit_swin(own: Mapping[str, Tensor], state: Mapping[str, Tensor], asked: Asked = NOTHING) -> Fitted:
    """Fit the weights of a Swin to another with other windows, outputs or size.

    Bias tables are resized geometrically, as in the reference implementation's fine-tuning (`resize_table`), a position
    embedding bicubically. Norms of outputs (`norm0`) and the mask token may be in one only.

    Args:
        own: State dict of the model's backbone, of MMPretrain or MMDetection.
        state: Weights of a backbone with the same names, as `to_ours` returns them, without prefix.
        asked: Other channels of the weights; other blocks are an error.

    Raises:
        ValueError: A weight is missing, left over or of another shape.
    """
    asked.refuse_new_blocks('Swin Transformers')
    fitted, resized = dict(state), []
    ours = {name: value for name, value in own.items() if not name.endswith(BUFFERS)}
    if asked.channels and PATCHES in ours and state[PATCHES].shape[1] != ours[PATCHES].shape[1]:
        old, new = state[PATCHES].shape[1], ours[PATCHES].shape[1]
        fitted[PATCHES] = adapt_channels(state[PATCHES], new, asked.channels)
        resized.append(f'{PATCHES} {old} -> {new} channels ({asked.channels})')
    for name in state.keys() & ours.keys():
        theirs, wanted = state[name], ours[name]
        if theirs.shape == wanted.shape or theirs.shape[-1] != wanted.shape[-1]:
            continue
        if name.endswith(TABLE):
            old, new = window_of(name, theirs), window_of(name, wanted)
            padded = torch.cat((theirs, theirs.new_zeros(CLS_ROWS, theirs.shape[1])))
            fitted[name] = resize_table(padded, (old, old), (new, new))[:-CLS_ROWS]
            resized.append(f'{name} windows of {old} -> {new}')
        elif name == POSITIONS and wanted.ndim == theirs.ndim == 3:
            old, new = side_of(theirs), side_of(wanted)
            fitted[name] = resample_abs_pos_embed(theirs, [new, new], [old, old], num_prefix_tokens=0)
            resized.append(f'{name} {old}x{old} -> {new}x{new}')
    if text := differences(ours, fitted, lambda name: bool(FINAL.fullmatch(name)) or name == 'mask_token'):
        raise ValueError(
            f'the checkpoint is of another Swin: {text}; set arch, patch_size and in_channels to those that it was '
            'trained with'
        )
    skipped = [name for name in state if name not in ours]
    loaded = {name: value for name, value in fitted.items() if name in ours}
    return Fitted(loaded, skipped, sorted(resized), [name for name in ours if name not in loaded])


def _reordered(name: str, value: Tensor, first: bool) -> Tensor:
    """Order of the channels of four merged patches: by column, row, channel; in MMCV by channel, row, column.

    Args:
        name: Name of any weight; those of other parts are returned as they are.
        value: Its last dimension is the four patches' channels.
        first: From MMCV's order to the other; else from the other to MMCV's.
    """
    if '.downsample.' not in name:
        return value
    channels = value.shape[-1] // 4
    shape = (channels, 2, 2) if first else (2, 2, channels)
    return value.unflatten(-1, shape).transpose(-1, -3).flatten(-3)


def _with_indices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the buffers of all code bases but timm's."""
    sides = {name: window_of(name, value) for name, value in state.items() if name.endswith(TABLE)}
    indices = {side: relative_position_index((side, side))[1:, 1:] for side in sides.values()}
    return {**state, **{name.replace(TABLE, INDEX): indices[side].clone() for name, side in sides.items()}}


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate query, key and value of Hugging Face to one tensor."""
    joined: dict[str, Tensor] = {}
    for name, value in state.items():
        if '.attention.self.query.' in name:
            parts = [state.get(name.replace('.query.', f'.{part}.')) for part in QKV]
            if any(part is None for part in parts):
                joined[name] = value  # named by the caller
            else:
                joined[name.replace('.query.', '.qkv.')] = torch.cat([part for part in parts if part is not None])
        elif '.attention.self.key.' not in name and '.attention.self.value.' not in name:
            joined[name] = value
    return joined


def masked_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MMPretrain's Swin, by bare names -> those of the `MaskedBackbone` of `swin_names.masked_config`."""
    token = state.get('mask_token', torch.zeros_like(state['patch_embed.norm.bias'])[None, None])  # unused without mask
    return {'mask_token': token, **{f'model.{name}': value for name, value in state.items() if name != 'mask_token'}}
