"""The same numbers in other tensors: biases of query, key and value, and the position embedding of tokens."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simmim_plugin.models.layers.relative_position import TABLE, Grid

WEIGHTS = ('q', 'k', 'v')
RATIO = 4  # of the sides of images that are thought of where no size is stated
ADVICE = '`simmim convert SRC DST --to plugin --img-size HEIGHT WIDTH`'
# Models of timm with positions of the patches alone (`no_embed_class`) by width, number of blocks, whether they have
# LayerScale, and registers -> patches: FlexiViT (240 px), DeiT III (224 and 384 px), DINOv2 with registers (518 px).
PATCHES_ALONE = {
    (384, 12, False, 0): (225,), (768, 12, False, 0): (225,), (1024, 24, False, 0): (225,),
    (384, 12, True, 0): (196, 576), (512, 12, True, 0): (196,), (768, 12, True, 0): (196, 576),
    (1024, 24, True, 0): (196, 576), (1280, 32, True, 0): (256,),
    (384, 12, True, 4): (1369,), (768, 12, True, 4): (1369,), (1024, 24, True, 4): (1369,),
}  # fmt: skip


def is_ordinary(state: Mapping[str, Tensor]) -> bool:
    """Whether a backbone is an ordinary ViT: a position embedding and no bias tables (our names, any prefix)."""
    tables = any(name.endswith(TABLE) for name in state)
    return not tables and any(name.endswith('pos_embed') for name in state)


def has_key_bias(state: Mapping[str, Tensor]) -> bool:
    """Whether attention has biases of its keys, as in ordinary ViTs; names as for `to_ours`."""
    return any(name.endswith(('.attn.qkv.bias', '.attn.k_bias')) for name in state)


def to_ours(state: Mapping[str, Tensor], kind: str, like: Grid | None, assumed: list[str]) -> dict[str, Tensor]:
    """A backbone as SimMIMViT has it, from the names and parts that the tables of `names.py` lead to.

    The bias of the keys is dropped: it adds the same number to all scores of a query, and softmax ignores that.

    Args:
        state: Parameters by our names, with `attn.qkv.bias`, `attn.q.weight` ..., `attn.k_bias` or `dist_token`.
        kind: What they are from, see `state_dicts.recognise`.
        like: Height and width in patches that the position embedding may be of; see `_embedded_tokens`.
        assumed: Gets lines about what neither says.

    Raises:
        ValueError: It is not determined which tokens the position embedding is of.
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
        _place_tokens(ours, kind, like, assumed)
    return ours


def _place_tokens(state: dict[str, Tensor], kind: str, like: Grid | None, assumed: list[str]) -> None:
    """Make `pos_embed` that of class token and patches, and a distillation token a register, in place."""
    distilled = 'dist_token' in state
    registers = state.pop('dist_token') if distilled else state.get('reg_token')
    extra = 0 if registers is None else registers.shape[1]
    # timm embeds all tokens or, with `no_embed_class` (MMPretrain: DeiT3), the patches alone; DINOv2 no registers.
    everything = 1 + extra if distilled or kind == 'timm' else 1
    options = (everything, 0) if kind in ('timm', 'mmpretrain') else (everything,)
    positions = state['pos_embed']
    rows, width = positions.shape[1:]
    depth = sum(name.startswith('blocks.') and name.endswith('.norm1.weight') for name in state)
    alone = rows in PATCHES_ALONE.get((width, depth, 'blocks.0.gamma_1' in state, extra), ())
    usual = {0} if alone else {everything} if distilled or not extra else set()
    tokens, line = _embedded_tokens(rows, options, usual, like)
    assumed += [line] if line else []
    state['pos_embed'] = torch.cat((positions[:, :1], positions[:, tokens:]), dim=1) if tokens > 1 else positions
    if tokens == 0:
        state['pos_embed'] = torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)
    if registers is not None:
        state['reg_token'] = registers + positions[:, 1:tokens] if tokens > 1 else registers


def _embedded_tokens(rows: int, options: Sequence[int], usual: set[int], like: Grid | None) -> tuple[int, str]:
    """How many rows of a position embedding are not of patches.

    Args:
        rows: Of the position embedding.
        options: Numbers that are possible.
        usual: Those with which published models like this one are made, for square images.
        like: The grid of patches that is stated or wanted, which decides; None: square.

    Returns:
        The number, and a line about what was assumed, or ''.

    Raises:
        ValueError: None fits, or several do.
    """
    fits = [(tokens, like) for tokens in options if like is not None and rows - tokens == like[0] * like[1]]
    squares = [(tokens, grid) for tokens in options if (grid := _grid_of(rows - tokens, 1)) is not None]
    others = [(tokens, grid) for tokens in options if (grid := _grid_of(rows - tokens, RATIO)) is not None]
    what = f'pos_embed has {rows} rows'
    if fits:
        rivals = [each for each in squares if each != fits[0]]
        for tokens, (side, _) in rivals:
            if tokens in usual - {fits[0][0]}:
                raise ValueError(
                    f'{what}, which is ambiguous: {_words(fits[0])}, the size that is asked for, or '
                    f'{_words((tokens, (side, side)))}, as in published models, which alone is read; convert it first '
                    f'for its own size, {side} times the patch: {ADVICE}'
                )
        line = f'assumed: pos_embed is of {_words(fits[0])}, as the size that is asked for' if rivals else ''
        return fits[0][0], line and f'{line}, not {" or ".join(map(_words, rivals))}'
    if len(squares) == 1:
        rivals = [each for each in others if each[0] != squares[0][0]]
        if not rivals or squares[0][0] in usual:
            line = f'assumed: pos_embed is of {_words(squares[0])}, as in published models' if rivals else ''
            return squares[0][0], line and f'{line}, not {" or ".join(map(_words, rivals))}: --img-size'
    if squares:
        raise ValueError(
            f'{what}, of {" or of ".join(map(_words, others))}; give the size it was trained with: {ADVICE}'
        )
    if len(options) == 1:
        return options[0], ''
    raise ValueError(
        f'{what}, which is no square of patches with {" or ".join(map(str, sorted(options)))} other tokens; give the '
        f'size it was trained with: {ADVICE}'
    )


def _grid_of(patches: int, ratio: int) -> Grid | None:
    """The grid of so many patches that is closest to a square; None if a side of it is over `ratio` times the other."""
    side = next((side for side in range(math.isqrt(max(patches, 0)), 0, -1) if patches % side == 0), None)
    return None if side is None or patches > ratio * side**2 else (side, patches // side)


def _words(reading: tuple[int, Grid]) -> str:
    tokens, (height, width) = reading
    first = ('', 'the class token and ')[tokens] if tokens < 2 else f'the class token, {tokens - 1} more and '
    return f'{first}{height} x {width} patches{"" if tokens else " alone"}'


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
