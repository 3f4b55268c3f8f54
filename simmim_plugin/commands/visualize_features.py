"""Draw the features of each block of a pretrained model: image and patch | PCA | similarity | attention.

PCA: the first three principal components of the patch features as red, green and blue, with a colour scale per row.
Similarity: cosine similarity of each patch to the marked one. Attention: from the marked patch to all patches, mean
over the heads. The caption of a row gives the values of the darkest and the lightest colour.
"""

import argparse
from typing import TYPE_CHECKING

from simmim_plugin.commands.options import add_device

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = """example:
  {program} work_dirs/quickstart/epoch_10.pth photo1.jpg photo2.jpg --point 120 80"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('checkpoint', help='checkpoint of a pretraining; its config is read from it')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument('--out', default='features.png', help='the picture (features.png)')
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--point',
        type=int,
        nargs=2,
        metavar=('X', 'Y'),
        help='pixel of the image file in the patch to mark (the centre)',
    )
    where.add_argument('--click', action='store_true', help='show each image in a window and mark the clicked patch')
    parser.add_argument(
        '--blocks',
        nargs='+',
        metavar='N',
        help="numbers of blocks, the first is 1, or 'all' (four, spread evenly, with the last)",
    )
    parser.add_argument(
        '--size', type=int, nargs='+', metavar='PX',
        help="shorter side, or height and width, of the input, rounded to whole patches (the training's shorter side). "
        'Larger sizes give finer maps; memory grows with the square of the number of patches',
    )  # fmt: skip
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Draw the picture."""
    from simmim_plugin.apis.visualize_features import draw_features
    from simmim_plugin.models.layers.architecture import block_arguments

    blocks = block_arguments(args.blocks)
    point = ask_point if args.click else args.point
    draw_features(args.checkpoint, args.images, args.out, point, blocks, args.size, args.device)
    print(f'picture: {args.out}')


def ask_point(image: 'Tensor', name: str) -> tuple[int, int]:
    """Show an image in a window and wait for a click.

    Args:
        image: (C, H, W), values as stored in the file.
        name: Title of the window.

    Returns:
        x and y of the clicked pixel.

    Raises:
        ValueError: No window can be opened, or it was closed without a click.
    """
    from simmim_plugin.visualization.sheets import to_display

    try:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(layout='constrained')
    except Exception as error:  # GUI toolkits named by $MPLBACKEND raise their own types
        raise ValueError(f'--click cannot open a window ({error}); give --point X Y instead') from error
    if figure.canvas.required_interactive_framework is None:  # matplotlib fell back to a backend without windows
        raise ValueError('--click cannot open a window: no display, or no GUI toolkit; give --point X Y instead')
    axes.imshow(to_display(image[None].float(), image[None].float())[0].permute(1, 2, 0).numpy())
    axes.set_title(f'{name}: click a patch')
    clicks = figure.ginput(1, timeout=0)
    plt.close(figure)
    if not clicks:
        raise ValueError(f'--click: the window of {name} was closed without a click; click, or give --point X Y')
    height, width = image.shape[1:]
    x, y = (round(place) for place in clicks[0])
    return min(max(x, 0), width - 1), min(max(y, 0), height - 1)
