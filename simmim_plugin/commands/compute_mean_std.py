"""Compute the mean and standard deviation per channel of a folder of images, and print them as config lines.

Put the lines below `_base_ = '.../configs/simmim_vit-b_folder.py'` (or another one) and `data_root = ...`.
"""

import argparse
import math

from simmim_plugin.commands.options import add_max_bytes

EXAMPLE = """example:
  {program} /path/to/scenes --channels 5 --dtype float32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('folder', help='folder of images, searched recursively')
    parser.add_argument('--channels', type=int, default=3, help='as in LoadImage (3)')
    parser.add_argument('--dtype', choices=('uint8', 'float32'), default='uint8', help='as in LoadImage (uint8)')
    parser.add_argument('--max-images', type=int, help='use this many, drawn at random (all)')
    add_max_bytes(parser)
    parser.add_argument(
        '--nodata', type=float, metavar='VALUE', help='value that stands for missing data, e.g. -9999 or nan (that of '
        "each GeoTIFF's tag)"
    )  # fmt: skip
    parser.add_argument('--workers', type=int, default=2, help='threads that read files (2)')


def run(args: argparse.Namespace) -> None:
    """Read the images and print the lines."""
    from simmim_plugin.datasets.preparation.mean_std import folder_mean_std

    more = {} if args.max_bytes is None else {'max_bytes': args.max_bytes}
    mean, std = folder_mean_std(
        args.folder, args.channels, args.dtype, args.max_images, args.workers, args.nodata, **more
    )
    given = dict(nodata=args.nodata, **more)
    settings = ''.join(f', {name}={_literal(value)}' for name, value in given.items() if value is not None)
    print(
        f'model = dict(\n'
        f'    data_preprocessor=dict(mean={_rounded(mean)}, std={_rounded(std)}),\n'
        f'    backbone=dict(in_channels={args.channels}),\n'
        f')\n'
        f"load = dict(_delete_=True, type='LoadImage', channels={args.channels}, dtype={args.dtype!r}{settings})"
    )


def _rounded(values: list[float]) -> list[float]:
    return [float(f'{value:.6g}') for value in values]


def _literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else f"float('{value}')"
