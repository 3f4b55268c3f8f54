"""Fit a state dict to a `SimMIMViT` of another grid or with other bias tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from simmim_plugin.models.layers.relative_position import CLS_ROWS, TABLE, Grid, resize_table, table_rows

SHARED = f'rel_pos_bias.{TABLE}'
ON_GRID = (TABLE, 'pos_embed')  # ends of the names of what is made for a grid
NAMED = 6  # names in a line of the report


class Fitted(NamedTuple):
    """Weights that fit a model, and what was done: names by what became of them."""

    state: dict[str, Tensor]
    skipped: list[str]  # in the checkpoint, not in the model
    resized: list[str]  # interpolated to the model's grid
    kept: list[str]  # in the model, not in the checkpoint

    def report(self, source: str) -> str:
        """Three lines: loaded, skipped, resized."""
        new = f'; new ones, as initialised: {_names(self.kept)}' if self.kept else ''
        return (
            f'Loaded {len(self.state)} tensors of {source}{new}\n'
            f'Skipped, not in the model: {_names(self.skipped)}\n'
            f'Resized to the grid of the model: {_names(self.resized)}'
        )


def fit_state(model: Any, state: Mapping[str, Tensor], grid: Grid | None = None) -> Fitted:
    """Make the weights of a backbone fit another one of the same width and depth.

    A shared bias table goes to every block where the model has one per block. Bias tables and position embeddings are
    interpolated (bicubic, see `resize_table`) to the model's grid.

    Args:
        model: A `SimMIMViT`.
        state: Names as the model has them, from a model with or without a shared table.
        grid: Height and width in patches that `state` is made for. None: told by the number of rows; square if that is
            possible, else of the proportions of the model's grid.

    Raises:
        ValueError: Nothing fits, or a shape does not.
    """
    own = dict(model.state_dict())
    state = dict(state)
    resized, faults = [], []
    tables = [name for name in own if name.endswith(f'attn.{TABLE}')]
    if SHARED in state and SHARED not in own and tables:
        table = state.pop(SHARED)
        state.update(dict.fromkeys(tables, table))
    other_grid = grid is not None and grid != model.grid  # 2 x 3 and 3 x 2 patches have tables of one shape
    to_fit = [n for n in state if n in own and (state[n].shape != own[n].shape or (other_grid and n.endswith(ON_GRID)))]
    for name in to_fit:
        value, target = state[name], own[name]
        fits = value.ndim == target.ndim and value.shape[-1] == target.shape[-1]
        if name.endswith(TABLE) and fits:
            old_grid = grid or table_grid(value.shape[0], model.grid, name)
            state[name] = resize_table(value, old_grid, model.grid)
            resized.append(f'{name} {_size(old_grid)} -> {_size(model.grid)}')
        elif name == 'pos_embed' and fits:
            old_grid = grid or _square(value.shape[1] - 1, name)
            state[name] = resample_abs_pos_embed(value, list(model.grid), list(old_grid))
            resized.append(f'{name} {_size(old_grid)} -> {_size(model.grid)}')
        else:
            faults.append(f'{name} is {tuple(value.shape)} in the checkpoint and {tuple(target.shape)} in the model')
    skipped = [name for name in state if name not in own]
    loaded = {name: value for name, value in state.items() if name in own}
    if not loaded:
        raise ValueError(
            f'nothing was loaded: the checkpoint has {_names(list(state)) or "no tensors"}, the model '
            f'{_names(list(own))}; `simmim convert --to plugin` converts those of other projects'
        )
    if lost := [name for name in skipped if name.endswith(TABLE)]:
        kind = 'use_shared_rel_pos_bias' if SHARED in lost else 'use_rel_pos_bias'
        raise ValueError(
            f'the checkpoint has relative position bias tables ({_names(lost)}) that the model has no place for; build '
            f'SimMIMViT with {kind}=True' + (' and use_shared_rel_pos_bias=False' if SHARED not in lost else '')
        )
    blocks = [{name.split('.')[1] for name in names if name.startswith('blocks.')} for names in (state, own)]
    if not faults and blocks[0] != blocks[1]:
        faults.append(f'the checkpoint has {len(blocks[0])} blocks and the model {len(blocks[1])}')
    if faults:
        more = f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''
        raise ValueError(
            f'the checkpoint is of another architecture: {faults[0]}{more}; set arch, patch_size and in_channels of '
            'SimMIMViT to those that it was trained with'
        )
    return Fitted(loaded, skipped, resized, [name for name in own if name not in loaded])


def table_grid(rows: int, like: Grid, name: str = TABLE) -> Grid:
    """Grid of a bias table by its number of rows: square if that is possible, else of the proportions of `like`.

    Raises:
        ValueError: There is no such grid.
    """
    side = (round((rows - CLS_ROWS) ** 0.5) + 1) // 2
    candidates = [(side, side)]
    for h in range(1, rows):
        if (2 * h - 1) ** 2 > rows * like[0]:
            break
        w, rest = divmod(h * like[1], like[0])
        candidates += [] if rest else [(h, w)]
    for grid in candidates:
        if min(grid) > 0 and table_rows(grid) == rows:
            return grid
    raise ValueError(
        f'{name} has {rows} rows, which no square grid of patches has, nor one of the proportions of {like[0]} x '
        f'{like[1]}; load it by init_cfg from a checkpoint that carries its config'
    )


def _square(tokens: int, name: str) -> Grid:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f'{name} has {tokens} patches, which is no square; load it by init_cfg from a checkpoint that '
                         'carries its config')  # fmt: skip
    return side, side


def _names(names: list[str]) -> str:
    if len(names) > NAMED:
        return f'{", ".join(names[: NAMED - 1])}, ... and {len(names) - NAMED + 1} more'
    return ', '.join(names) or 'none'


def _size(grid: Grid) -> str:
    return f'{grid[0]}x{grid[1]}'
