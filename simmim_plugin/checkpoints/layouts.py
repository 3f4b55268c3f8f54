"""The same numbers in other tensors: biases of query, key and value, and the position embedding of tokens."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simmim_plugin.models.layers.relative_position import TABLE, Grid

WEIGHTS = ('q', 'k', 'v')


def is_ordinary(state: Mapping[str, Tensor]) -> bool:
    """Whether a backbone is an ordinary ViT: a position embedding and no bias tables (our names, any prefix)."""
    tables = any(name.endswith(TABLE) for name in state)
    return not tables and any(name.endswith('pos_embed') for name in state)


def has_key_bias(state: Mapping[str, Tensor]) -> bool:
    """Whether attention has biases of its keys, as in ordinary ViTs; names as for `to_ours`."""
    return any(name.endswith(('.attn.qkv.bias', '.attn.k_bias')) for name in state)


def to_ours(state: Mapping[str, Tensor], like: Grid | None = None, free: bool = False) -> dict[str, Tensor]:
    """A backbone as SimMIMViT has it, from the names and parts that the tables of `names.py` lead to.

    The bias of the keys is dropped: it adds the same number to all scores of a query, and softmax ignores that.

    Args:
        state: Parameters by our names, with `attn.qkv.bias`, `attn.q.weight` ..., `attn.k_bias` or `dist_token`.
        like: Height and width in patches that the position embedding may be of; see `_embedded_tokens`.
        free: The class token may have no position even without LayerScale or registers.

    Raises:
        ValueError: It does not determine which tokens the position embedding is of.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, _, last = name.rpartition('.attn.')
        if last == 'qkv.bias':
            ours[f'{owner}.attn.q_bias'], _, ours[f'{owner}.attn.v_bias'] = value.chunk(3)
        elif last == 'q.weight':
            parts = [state[f'{owner}.attn.{part}.weight'] for part in WEIGHTS if f'{owner}.attn.{part}.weight' in state]
            if len(parts) == 3:  # else it is missing
                ours[f'{owner}.attn.qkv.weight'] = torch.cat(parts)
        elif last not in ('k.weight', 'v.weight', 'k_bias'):
            ours[name] = value
    if 'mask_token' in ours and ours['mask_token'].ndim == 2:  # DINOv2's
        ours['mask_token'] = ours['mask_token'][None]
    if has_key_bias(state) and 'cls_token' in ours and 'pos_embed' in ours:
        _place_tokens(ours, like, free)
    return ours


def _place_tokens(state: dict[str, Tensor], like: Grid | None, free: bool) -> None:
    """Make `pos_embed` that of class token and patches, and a distillation token a register, in place."""
    distilled = 'dist_token' in state
    registers = state.pop('dist_token') if distilled else state.get('reg_token')
    extra = 0 if registers is None else registers.shape[1]
    free |= 'blocks.0.gamma_1' in state
    # DeiT embeds all tokens; timm's others all or (`no_embed_class`: DeiT III, FlexiViT) none; DINOv2 the class token.
    options = (1 + extra,) if distilled else (1, 0, 1 + extra) if extra else (1, 0) if free else (1,)
    positions = state['pos_embed']
    tokens = _embedded_tokens(positions.shape[1], options, like)
    state['pos_embed'] = torch.cat((positions[:, :1], positions[:, tokens:]), dim=1) if tokens > 1 else positions
    if tokens == 0:
        state['pos_embed'] = torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)
    if registers is not None:
        state['reg_token'] = registers + positions[:, 1:tokens] if tokens > 1 else registers


def _embedded_tokens(rows: int, options: Sequence[int], like: Grid | None) -> int:
    """How many rows of a position embedding are not of patches: the option that leaves a grid `like`, or a square.

    Raises:
        ValueError: None does, and there is more than one.
    """
    grids = [rows - tokens for tokens in options]
    for tokens, patches in zip(options, grids):
        if like is not None and patches == like[0] * like[1]:
            return tokens
    for tokens, patches in zip(options, grids):
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            return tokens
    if len(options) == 1:
        return options[0]
    raise ValueError(
        f'pos_embed has {rows} rows, which is no square of patches with {" or ".join(map(str, sorted(options)))} other '
        'tokens; for other images, load it by init_cfg into a SimMIMViT with their img_size'
    )


def to_theirs(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The reverse of `to_ours`, for a family's layout.

    Args:
        state: Parameters of a SimMIMViT.
        layout: 'beit': as they are; 'vit': one bias for query, key (zeros) and value; 'hf_beit': weights of query, key
            and value apart; 'hf_vit': these, and a bias of each; 'hf_dinov2': these, and a mask token (1, D).
    """
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, _, last = name.rpartition('.attn.')
        if layout == 'vit' and last == 'q_bias':
            theirs[f'{owner}.attn.qkv.bias'] = torch.cat(
                (value, torch.zeros_like(value), state[f'{owner}.attn.v_bias'])
            )
        elif layout == 'vit' and last == 'v_bias':
            continue
        elif layout.startswith('hf') and last == 'qkv.weight':
            theirs |= {f'{owner}.attn.{part}.weight': weight for part, weight in zip(WEIGHTS, value.chunk(3))}
        else:
            theirs[name] = value
            if layout in ('hf_vit', 'hf_dinov2') and last == 'q_bias':
                theirs[f'{owner}.attn.k_bias'] = torch.zeros_like(value)
    if layout == 'hf_dinov2' and 'mask_token' in theirs:
        theirs['mask_token'] = theirs['mask_token'][0]
    return theirs


def with_register_positions(state: dict[str, Tensor]) -> None:
    """Lay out a position embedding as timm's VisionTransformer has it, in place.

    Without a position of the class token (DeiT III, DINOv2 with registers: `no_embed_class`), it is that of the patches
    alone; else registers get positions of zeros.
    """
    positions, registers = state['pos_embed'], state.get('reg_token')
    if embeds_patches_only(state):
        state['pos_embed'] = positions[:, 1:]
    elif registers is not None:
        state['pos_embed'] = torch.cat((positions[:, :1], torch.zeros_like(registers), positions[:, 1:]), dim=1)


def embeds_patches_only(state: Mapping[str, Tensor]) -> bool:
    """Whether timm's VisionTransformer needs `no_embed_class` for this backbone (our names, no prefix)."""
    known = 'reg_token' in state or 'blocks.0.gamma_1' in state  # MAE's positions have zeros there, too
    return known and not state['pos_embed'][:, 0].any()
