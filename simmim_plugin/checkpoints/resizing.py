"""Change converted weights, on request, to other image sizes, patches and channels."""

from timm.layers import resample_patch_embed
from torch import Tensor

from simmim_plugin.checkpoints.other_projects import Facts
from simmim_plugin.checkpoints.saved import Saved
from simmim_plugin.checkpoints.state_dicts import grid_like
from simmim_plugin.models.fit import ON_GRID, PATCHES, adapt_channels, resize_to_grid, rows_of
from simmim_plugin.utils.arguments import grid_of, sides, whole

KERNEL = f'backbone.{PATCHES}'
LARGEST = 2**28  # values in a tensor: 1 GiB in float32


def source_size(saved: Saved, state: dict[str, Tensor], img_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Image height and width that weights are for: what the file says; else a given size that their rows fit.

    Args:
        saved: The file.
        state: Its weights as `to_plugin` returns them.
        img_size: The size wanted.

    Returns:
        The size; what the file says if neither fits; None if it says nothing, so that it is inferred, see `facts_of`.
    """
    patch = state[KERNEL].shape[-1] if KERNEL in state else 1
    on_grid = {name: value.shape[-2] for name, value in state.items() if name.endswith(ON_GRID)}
    for size in (saved.img_size, img_size):
        grid = size and grid_like(size, patch)
        if grid and all(rows == rows_of(name, grid) for name, rows in on_grid.items()):
            return size
    return saved.img_size


def check_sizes(**values: int) -> None:
    """Raise ValueError for options, by name, that ask for a tensor with more values than can be meant."""
    for options, count in values.items():
        if count > LARGEST:
            raise ValueError(f'{options} ask for {count} values in one tensor; at most {LARGEST} are written')


def change(
    state: dict[str, Tensor],
    facts: Facts,
    img_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_channels: int | None = None,
    channels: str = 'repeat',
    interpolation: str = 'geometric',
) -> tuple[Facts, list[str], list[str]]:
    """Resize the weights of a model, in place.

    Patch kernels by the pseudo-inverse of the resizing of images (FlexiViT, arXiv 2212.08013; timm's
    `resample_patch_embed`): a patch that is enlarged to the new size then gives the same token.

    Args:
        state: As `to_plugin` returns it. A decoder for other patches or channels is taken out.
        facts: What it is.
        img_size: New image height and width in pixels; None: as they are.
        patch_size: New side of a patch in pixels; None: as it is.
        in_channels: New number of channels; None: as it is.
        channels: See `adapt_channels`.
        interpolation: Of bias tables, see `resize_table`.

    Returns:
        What the weights are now, lines about what was resized, and the names taken out.

    Raises:
        ValueError: An argument is out of range, or the sides of the images are no multiples of the patch.
    """
    size = facts.img_size if img_size is None else sides('--img-size', img_size)
    patch = facts.patch_size if patch_size is None else whole('--patch-size', patch_size, 1)
    number = facts.in_channels if in_channels is None else whole('--in-channels', in_channels, 1)
    grid = grid_of('--img-size', size, patch, '' if patch_size is None else '--patch-size and --img-size go together')
    width, patches = facts.arch['embed_dims'], grid[0] * grid[1]
    pairs = patches if facts.shared_table or facts.block_tables else 0  # tables have an index for each pair
    check_sizes(**{
        '--in-channels and --patch-size': width * number * patch**2, '--img-size': patches * max(width, pairs),
    })  # fmt: skip
    lines = []
    if number != facts.in_channels:
        state[KERNEL] = adapt_channels(state[KERNEL], number, channels)
        lines.append(f'{KERNEL} {facts.in_channels} -> {number} channels ({channels})')
    if patch != facts.patch_size:
        state[KERNEL] = resample_patch_embed(state[KERNEL], [patch, patch])
        lines.append(f'{KERNEL} {facts.patch_size} x {facts.patch_size} -> {patch} x {patch} px')
    left_out = []
    layers = facts.decoder_layers
    if lines:  # the decoder predicts the pixels of a patch
        left_out = take_decoder(state)
        layers = 0
    if facts.grid != grid:
        fitted, resized = resize_to_grid(state, grid, facts.grid, interpolation)
        state.update(fitted)
        lines += resized
    facts = facts._replace(img_size=size, patch_size=patch, in_channels=number, decoder_layers=layers)
    return facts, [f'resized: {line}' for line in lines], left_out


def take_decoder(state: dict[str, Tensor]) -> list[str]:
    """Take the weights of a decoder out of a state dict; their names."""
    names = [name for name in state if name.startswith('head.decoder')]
    for name in names:
        del state[name]
    return names
