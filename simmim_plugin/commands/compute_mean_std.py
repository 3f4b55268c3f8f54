"""Mean and standard deviation per channel of a folder of images, printed as the lines of a leaf config.

Put them below `_base_ = '.../configs/simmim_vit-b_folder.py'` (or another one) and `data_root = ...`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.utils import errors

EXAMPLE = """example:
  python tools/compute_mean_std.py /path/to/scenes --channels 5 --dtype float32"""


def main() -> None:
    """Parse the command line, read the images and print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='folder of images, searched recursively')
    parser.add_argument('--channels', type=int, default=3, help='as in LoadImage (3)')
    parser.add_argument('--dtype', choices=('uint8', 'float32'), default='uint8', help='as in LoadImage (uint8)')
    parser.add_argument('--max-images', type=int, help='take so many, drawn at random (all)')
    parser.add_argument('--workers', type=int, default=2, help='threads that read files (2)')
    args = parser.parse_args()
    with errors.one_line_errors():
        from simmim_plugin.datasets.preparation.mean_std import folder_mean_std

        mean, std = folder_mean_std(args.folder, args.channels, args.dtype, args.max_images, args.workers)
        print(
            f'model = dict(\n'
            f'    data_preprocessor=dict(mean={_rounded(mean)}, std={_rounded(std)}),\n'
            f'    backbone=dict(in_channels={args.channels}),\n'
            f')\n'
            f"load = dict(_delete_=True, type='LoadImage', channels={args.channels}, dtype={args.dtype!r})"
        )


def _rounded(values: list[float]) -> list[float]:
    return [float(f'{value:.6g}') for value in values]


if __name__ == '__main__':
    main()
