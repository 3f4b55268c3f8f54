"""Resolve the arguments of SimMIMViT: architectures, block indices, window sizes."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from simmim_plugin.utils.arguments import choice, flags, keys, whole

ARCH_KEYS = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
ARCH_LIMITS = (1 << 16, 1 << 10, 1 << 10, 1 << 20)  # far above any ViT: nobody waits for a slip of the pen
# ViT-S/B/L/H. (This small is MMPretrain's 'deit-small'; MMPretrain's 'small' is 768 wide and 8 deep.)
ARCHS: dict[str, dict[str, int]] = {
    'small': dict(zip(ARCH_KEYS, (384, 12, 6, 1536))),
    'base': dict(zip(ARCH_KEYS, (768, 12, 12, 3072))),
    'large': dict(zip(ARCH_KEYS, (1024, 24, 16, 4096))),
    'huge': dict(zip(ARCH_KEYS, (1280, 32, 16, 5120))),
}


def arch_settings(arch: str | dict[str, int]) -> tuple[int, int, int, int]:
    """Width, number of blocks, number of heads, and hidden width of the MLP.

    Raises:
        ValueError: The name is unknown, or the dict is incomplete or has a value out of range.
    """
    if isinstance(arch, str):
        arch = ARCHS[choice('arch', arch, ARCHS, f'or give a dict of {", ".join(ARCH_KEYS)}')]
    keys('arch', arch, ARCH_KEYS)
    width, depth, heads, hidden = (
        whole(f'arch.{name}', arch[name], 1, limit) for name, limit in zip(ARCH_KEYS, ARCH_LIMITS)
    )
    if width % heads:
        raise ValueError(f'arch: embed_dims={width} must be a multiple of num_heads={heads}')
    return width, depth, heads, hidden


def rising_blocks(name: str, indices: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Block indices of an argument `name`, from 0; negative ones count from the end.

    Raises:
        ValueError: They are none, outside the model, or not rising.
    """
    given = indices if isinstance(indices, Sequence) and not isinstance(indices, str) else (indices,)
    for index in given:
        whole(name, index, -num_layers, num_layers - 1, f'the model has {num_layers} blocks')
    blocks = tuple(index % num_layers for index in given)
    if not blocks or list(blocks) != sorted(set(blocks)):
        raise ValueError(f'{name}={indices!r} must be one or more blocks, rising, each once')
    return blocks


def block_numbers(blocks: Sequence[int] | str | None, count: int) -> list[int]:
    """Block numbers from 1, rising: those given, 'all', or (None) those at each quarter of the depth."""
    if blocks == 'all':
        return list(range(1, count + 1))
    numbers = [math.ceil(count * i / 4) for i in (1, 2, 3, 4)] if blocks is None else blocks
    if not numbers or not isinstance(numbers, Sequence) or not all(_is_block(n, count) for n in numbers):
        raise ValueError(f"blocks={numbers}: the model has blocks 1 ... {count}; give numbers of these, or 'all'")
    return sorted({int(n) for n in numbers})


def _is_block(number: Any, count: int) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and 1 <= int(number) <= count


def block_arguments(words: Sequence[str] | None) -> Any:
    """Convert `--blocks` of the command line to the argument of `draw_features` and `FeatureExtractor`."""
    if words is None:
        return None
    return 'all' if list(words) == ['all'] else [int(word) if word.isdecimal() else word for word in words]


def one_table(shared: bool, per_block: bool) -> None:
    """Raise ValueError unless at most one of the two kinds of bias tables is asked for."""
    flags(use_shared_rel_pos_bias=shared, use_rel_pos_bias=per_block)
    if shared and per_block:
        raise ValueError('use_shared_rel_pos_bias=True and use_rel_pos_bias=True exclude each other; set one to False')


def window_sizes(window_size: int, global_blocks: Sequence[int], num_layers: int) -> list[int]:
    """Side of the windows of each block, in patches; 0: global attention.

    Raises:
        ValueError: The size is negative, or the blocks do not exist or are given without a size.
    """
    whole('window_size', window_size, 0, hint='the side of a window in patches, such as 14, or 0 for no windows')
    if isinstance(global_blocks, list | tuple) and not global_blocks:
        return [window_size] * num_layers
    if not window_size and global_blocks is not None:
        raise ValueError(
            f'global_blocks={global_blocks!r} without window_size: all blocks are global; set window_size=14'
        )
    global_ = rising_blocks('global_blocks', global_blocks, num_layers)
    return [0 if i in global_ else window_size for i in range(num_layers)]
