"""Fit a state dict to a `SimMIMViT` with another grid or other bias tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from simmim_plugin.models.differences import described, differences, names_of, other_shapes
from simmim_plugin.models.layers.relative_position import TABLE, Grid, resize_table, table_rows
from simmim_plugin.utils.arguments import choice, whole

SHARED = f'rel_pos_bias.{TABLE}'
ON_GRID = (TABLE, 'pos_embed')  # name endings of parameters whose shape depends on the grid
PATCHES = 'patch_embed.proj.weight'
ADAPTATIONS = ('repeat', 'mean')  # of weights to other channels, see `adapt_channels`


class Asked(NamedTuple):
    """Differences between checkpoint and model that a user has asked for; none is accepted otherwise.

    Args:
        channels: How to adapt weights for images of other channels, see `adapt_channels`; None: they are an error.
        new_blocks: Number of the model's last blocks that the checkpoint must lack, as after a pretraining with fewer
            blocks (FastMIM, arXiv 2212.06593). They stay as initialised, with their bias tables; so does the final
            norm, since the checkpoint's is that of an earlier block.
    """

    channels: str | None = None
    new_blocks: int = 0

    def refuse_new_blocks(self, kind: str) -> None:
        """Raise ValueError for models other than SimMIMViT."""
        if self.new_blocks:
            raise ValueError(f'new_blocks={self.new_blocks} is for SimMIMViT, not for {kind}; leave new_blocks out')

    def without_new(self, names: Sequence[str], blocks: int) -> list[str]:
        """The names of a model of so many blocks, without those of the new blocks."""
        new = tuple(f'blocks.{i}.' for i in range(blocks - self.new_blocks, blocks))
        return [name for name in names if not name.startswith(new)]


NOTHING = Asked()


def asked_for(where: str, adapt_channels: Any, new_blocks: Any) -> Asked:
    """Check what a user asks for; `where` begins the names in messages."""
    choice(f'{where}adapt_channels', adapt_channels, (None, *ADAPTATIONS))
    return Asked(
        adapt_channels, whole(f'{where}new_blocks', new_blocks, 0, hint='the number of last blocks that are new')
    )


class Fitted(NamedTuple):
    """Weights that fit a model, and the names of those that were skipped, resized or kept."""

    state: dict[str, Tensor]
    skipped: list[str]  # in the checkpoint, not in the model
    resized: list[str]  # interpolated to the model's grid, or adapted to its channels
    kept: list[str]  # in the model, not in the checkpoint

    def report(self, source: str) -> str:
        """Three lines: loaded, skipped, resized."""
        new = f'; new ones, as initialised: {names_of(self.kept)}' if self.kept else ''
        return (
            f'Loaded {len(self.state)} tensors of {source}{new}\n'
            f'Skipped, not in the model: {names_of(self.skipped)}\n'
            f'Resized to the model: {names_of(self.resized)}'
        )


def fit_state(model: Any, state: Mapping[str, Tensor], grid: Grid | None = None, asked: Asked = NOTHING) -> Fitted:
    """Fit the weights of one backbone to another of the same width and, if nothing else is asked for, depth.

    A shared bias table is copied to every block if the model has one table per block. Bias tables and position
    embeddings are interpolated to the model's grid (see `resize_table`; embeddings bicubic).

    Args:
        model: A `SimMIMViT`.
        state: A state dict with the model's names, with or without a shared table.
        grid: Height and width in patches of the model that `state` is from. None: inferred, see `grid_of_table`.
        asked: Other channels or blocks of `state`.

    Raises:
        ValueError: Nothing fits, or a shape or the number of blocks does not.
    """
    own = dict(model.state_dict())
    target = _old_part(state, own, asked)
    spread = _spread(state, target)
    adapted = []
    theirs, ours = (tensors[PATCHES].shape[1] if PATCHES in tensors else 0 for tensors in (spread, target))
    if theirs and asked.channels and theirs != ours:
        spread[PATCHES] = adapt_channels(spread[PATCHES], ours, asked.channels)
        adapted = [f'{PATCHES} {theirs} -> {ours} channels ({asked.channels})']
    _refuse(spread, target, _blocks(state))
    loaded = {name: value for name, value in spread.items() if name in target}
    skipped = [name for name in spread if name not in target]
    fitted, resized = resize_to_grid(loaded, model.grid, grid, model.table_interpolation)
    return Fitted(fitted, skipped, adapted + resized, [name for name in own if name not in fitted])


def _old_part(state: Mapping[str, Tensor], own: dict[str, Tensor], asked: Asked) -> dict[str, Tensor]:
    """What of a model is not new, and so must be in a checkpoint."""
    theirs, ours, new = len(_blocks(state)), len(_blocks(own)), asked.new_blocks
    if not new:
        return own
    if theirs + new != ours or not theirs:
        right = f'give new_blocks={ours - theirs}' if 0 < theirs < ours else 'leave new_blocks out'
        raise ValueError(f'new_blocks={new}: the checkpoint has {theirs} blocks and the model {ours}; {right}')
    return {name: own[name] for name in asked.without_new(list(own), ours) if not name.startswith('norm.')}


def adapt_channels(weight: Tensor, channels: int, how: str) -> Tensor:
    """Adapt the weights of a patch embedding to images of other channels.

    Both rules keep the response to an image whose channels are all the same (if the old channels are whole in the new
    ones, for 'repeat').

    Args:
        weight: (D, N, p, p).
        channels: Their new number, M.
        how: 'repeat': the first M of the N channels, repeated as often as needed, times N / M; for M = 1 their sum, as
            timm's `adapt_input_conv`. 'mean': the mean of the N channels for each, times N / M.

    Returns:
        (D, M, p, p).

    Raises:
        ValueError: `how` is unknown.
    """
    choice('adapt_channels', how, ADAPTATIONS)
    old = weight.shape[1]
    if how == 'mean' or channels == 1:
        adapted = weight.float().mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    else:
        adapted = weight.float()[:, [i % old for i in range(channels)]]
    return (adapted * (old / channels)).to(weight.dtype)


def check_fits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise an error that lists the differences if weights are of another architecture.

    Args:
        own: The model's state dict.
        state: The checkpoint's.

    Raises:
        ValueError: Shapes differ, or one has entries that the other lacks.
    """
    _raise(differences(own, state), 'use the config that it was trained with')


def grid_of_table(name: str, value: Tensor, grid: Grid | None = None, like: Grid = (1, 1)) -> Grid:
    """Grid, height and width in patches, of a bias table or a position embedding.

    Args:
        name: Name of the parameter; one that ends in `relative_position_bias_table` is a table.
        value: (rows, heads) of a table, (1, rows, D) of a position embedding.
        grid: The grid, if known; the number of rows is checked. None: inferred: a square if the number of rows allows
            it, else the proportions of `like`.
        like: Grid whose proportions are tried second.

    Raises:
        ValueError: The number of rows does not fit.
    """
    rows = value.shape[-2]
    divisor = math.gcd(*like)
    units = ((1, 1), (like[0] // divisor, like[1] // divisor))
    inferred = ((n * h, n * w) for h, w in units for n in range(1, math.isqrt(rows) + 1))
    for candidate in inferred if grid is None else (grid,):
        if rows == rows_of(name, candidate):
            return candidate
    other = '' if like[0] == like[1] else f', nor one of the proportions of {like[0]} x {like[1]}'
    what = f'no square grid of patches has{other}'
    if grid is not None:
        what = f'a grid of {grid[0]} x {grid[1]} patches does not have'
    raise ValueError(
        f'{name} has {rows} rows, which {what}; give the size of the images that it was trained with: '
        '`simmim convert SRC DST --to KIND --img-size HEIGHT WIDTH`'
    )


def rows_of(name: str, grid: Grid) -> int:
    """Rows of a bias table or a position embedding, by its name, for a grid."""
    return table_rows(grid) if name.endswith(TABLE) else 1 + grid[0] * grid[1]


def resize_to_grid(
    state: Mapping[str, Tensor], grid: Grid, old: Grid | None = None, interpolation: str = 'geometric'
) -> tuple[dict[str, Tensor], list[str]]:
    """Interpolate bias tables and position embeddings (bicubic, timm's rule) to another grid.

    Args:
        state: A state dict, with or without prefixes.
        grid: Height and width in patches.
        old: Those of the model that `state` is from; None: `grid` if the rows fit, else inferred, see `grid_of_table`.
        interpolation: Of tables, see `resize_table`.

    Returns:
        The state dict, and the names of what was interpolated, with both grids.

    Raises:
        ValueError: See `grid_of_table`.
    """
    fitted, resized = dict(state), []
    for name, value in state.items():
        if not name.endswith(ON_GRID):
            continue
        fits = grid if value.shape[-2] == rows_of(name, grid) else None
        theirs = grid_of_table(name, value, old or fits, like=grid)  # 2 x 3 and 3 x 2 patches have tables of one shape
        if theirs != grid:
            if name.endswith(TABLE):
                fitted[name] = resize_table(value, theirs, grid, interpolation)
            else:
                fitted[name] = resample_abs_pos_embed(value, list(grid), list(theirs))
            resized.append(f'{name} {theirs[0]}x{theirs[1]} -> {grid[0]}x{grid[1]}')
    return fitted, resized


def _spread(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a shared bias table to every block if the model has one table per block."""
    tables = [name for name in own if name.endswith(f'attn.{TABLE}')]
    if SHARED not in state or SHARED in own or not tables:
        return dict(state)
    others = {name: value for name, value in state.items() if name != SHARED}
    return others | dict.fromkeys(tables, state[SHARED])


def _refuse(state: Mapping[str, Tensor], own: Mapping[str, Tensor], blocks: set[str]) -> None:
    """Raise ValueError if nothing fits, positions would be lost, or more than the grid differs."""
    if not state.keys() & own.keys():
        raise ValueError(
            f'nothing was loaded: the checkpoint has {names_of(list(state)) or "no tensors"}, the model '
            f'{names_of(list(own))}; `simmim convert --to plugin` converts those of other projects'
        )
    if lost := [name for name in state if name.endswith(TABLE) and name not in own]:
        kind = 'use_shared_rel_pos_bias' if SHARED in lost else 'use_rel_pos_bias'
        raise ValueError(
            f'the checkpoint has relative position bias tables ({names_of(lost)}) that the model has no place for; '
            f'build SimMIMViT with {kind}=True' + (' and use_shared_rel_pos_bias=False' if SHARED not in lost else '')
        )
    if 'pos_embed' in state and 'pos_embed' not in own:
        raise ValueError(
            'the checkpoint has a position embedding (pos_embed) that the model has no place for; build SimMIMViT with '
            'use_abs_pos_embed=True'
        )
    theirs, ours = (tensors[PATCHES].shape if PATCHES in tensors else None for tensors in (state, own))
    if theirs and ours and theirs[:2] == ours[:2] and theirs[2:] != ours[2:]:
        raise ValueError(
            f'the checkpoint has patches of {_sides(theirs)} px and the model of {_sides(ours)} px; set patch_size of '
            'SimMIMViT to that of the checkpoint, or resize the weights: `simmim convert SRC DST --to plugin '
            f'--patch-size {ours[-1]}`'
        )
    if theirs and ours and theirs[1] != ours[1] and (theirs[0], theirs[2:]) == (ours[0], ours[2:]):
        raise ValueError(
            f'the checkpoint is for images of {theirs[1]} channels and the model for {ours[1]}; set in_channels='
            f"{theirs[1]} of SimMIMViT, or ask for adapted weights: adapt_channels='repeat' (or 'mean') in "
            "init_cfg=dict(type='Pretrained', ...), for load_from in default_hooks.checkpoint; or `simmim convert SRC "
            f'DST --to KIND --in-channels {ours[1]}`'
        )
    fixed = {name: value for name, value in own.items() if not (name in state and _fits_grid(name, value, state[name]))}
    text = described([], [], other_shapes(fixed, state))
    if not text and blocks != _blocks(own):
        fewer = len(_blocks(own)) - len(blocks)
        text = f'the checkpoint has {len(blocks)} blocks and the model {len(_blocks(own))}'
        if blocks and fewer > 0:
            raise ValueError(
                f'{text}; set num_layers of arch to that of the checkpoint, or, where the pretraining left out the '
                f"last blocks, let them be new: new_blocks={fewer} in init_cfg=dict(type='Pretrained', ...), for "
                f'load_from default_hooks.checkpoint.new_blocks={fewer}'
            )
    _raise(text, 'set arch, patch_size and in_channels of SimMIMViT to those that it was trained with')


def _fits_grid(name: str, own: Tensor, value: Tensor) -> bool:
    """Whether a table or embedding of another grid has as many heads or channels."""
    return name.endswith(ON_GRID) and own.ndim == value.ndim and own.shape[-1] == value.shape[-1]


def _raise(text: str, advice: str) -> None:
    if text:
        raise ValueError(f'the checkpoint is of another architecture: {text}; {advice}')


def _sides(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape[2:]))


def _blocks(state: Mapping[str, Tensor]) -> set[str]:
    return {name.split('.')[1] for name in state if name.startswith('blocks.')}


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
