"""What the arguments of SimMIMViT stand for: sizes, blocks."""

import math
from collections.abc import Sequence
from typing import Any

ARCH_KEYS = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
# The field's ViT-S/B/L/H. (MMPretrain calls this small 'deit-small'; its own 'small' is 768 wide and 8 deep.)
ARCHS: dict[str, dict[str, int]] = {
    'small': dict(zip(ARCH_KEYS, (384, 12, 6, 1536))),
    'base': dict(zip(ARCH_KEYS, (768, 12, 12, 3072))),
    'large': dict(zip(ARCH_KEYS, (1024, 24, 16, 4096))),
    'huge': dict(zip(ARCH_KEYS, (1280, 32, 16, 5120))),
}


def arch_settings(arch: str | dict[str, int]) -> tuple[int, int, int, int]:
    """Width, number of blocks, of heads, and hidden width of the MLP.

    Raises:
        ValueError: The name is unknown, or the dict is not complete.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'arch={arch!r} is unknown; choose one of {", ".join(ARCHS)}, or give a dict of {ARCH_KEYS}'
            )
        arch = ARCHS[arch]
    if set(arch) != set(ARCH_KEYS):
        raise ValueError(f'arch={arch} must have exactly the keys {", ".join(ARCH_KEYS)}')
    if arch['embed_dims'] % arch['num_heads']:
        raise ValueError(f'arch: embed_dims={arch["embed_dims"]} must be a multiple of num_heads={arch["num_heads"]}')
    return arch['embed_dims'], arch['num_layers'], arch['num_heads'], arch['feedforward_channels']


def rising_blocks(name: str, indices: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Blocks of an argument `name`, from 0; negative ones count from the end.

    Raises:
        ValueError: None, outside the blocks, or not rising.
    """
    given = (indices,) if isinstance(indices, int) else tuple(indices)
    if not given or any(not -num_layers <= i < num_layers for i in given):
        raise ValueError(
            f'{name}={indices} must lie in {-num_layers} ... {num_layers - 1} (number of blocks: {num_layers})'
        )
    blocks = tuple(i % num_layers for i in given)
    if list(blocks) != sorted(set(blocks)):
        raise ValueError(f'{name}={indices} must rise, each block once')
    return blocks


def block_numbers(blocks: Sequence[int] | str | None, count: int) -> list[int]:
    """Rising numbers from 1."""
    if blocks == 'all':
        return list(range(1, count + 1))
    numbers = [math.ceil(count * i / 4) for i in (1, 2, 3, 4)] if blocks is None else blocks
    if not numbers or any(not isinstance(n, int) or not 1 <= n <= count for n in numbers):
        raise ValueError(f"blocks={numbers}: the model has blocks 1 ... {count}; give numbers of these, or 'all'")
    return sorted({int(n) for n in numbers})


def block_arguments(words: Sequence[str] | None) -> Any:
    """`--blocks` of the command line as `draw_features` and `FeatureExtractor` take it."""
    if words is None:
        return None
    return 'all' if list(words) == ['all'] else [int(word) if word.isdecimal() else word for word in words]


def window_sizes(window_size: int, global_blocks: Sequence[int], num_layers: int) -> list[int]:
    """Side of the windows of each block, in patches; 0: none.

    Raises:
        ValueError: The size is negative, or the blocks do not exist or are given without a size.
    """
    if window_size < 0:
        raise ValueError(f'window_size={window_size} must be a side in patches, such as 14, or 0 for no windows')
    if not global_blocks:
        return [window_size] * num_layers
    if not window_size:
        raise ValueError(
            f'global_blocks={global_blocks} without window_size: all blocks are global; set window_size=14'
        )
    whole = rising_blocks('global_blocks', global_blocks, num_layers)
    return [0 if i in whole else window_size for i in range(num_layers)]


def grid_of(name: str, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Height and width in patches of a size in pixels, of an argument `name`.

    Raises:
        ValueError: A side is no positive multiple of the patch.
    """
    if min(size) < 1 or size[0] % patch_size or size[1] % patch_size:
        fit = ' x '.join(str(max(1, round(side / patch_size)) * patch_size) for side in size)
        raise ValueError(
            f'{name} of {size[0]} x {size[1]} px: both sides must be positive multiples of patch_size={patch_size}, '
            f'e.g. {fit}'
        )
    return size[0] // patch_size, size[1] // patch_size
