"""`simmim sample KIND OUT`: a small data set from what comes inside wheels, to try the rest with."""

import argparse
from pathlib import Path

from simmim_plugin.utils import errors

EXAMPLE = """example:
  simmim sample photos photos/     images without labels
  simmim sample digits digits/     train/<class>/ and val/<class>/
  simmim sample shapes shapes/     boxes, outlines and masks, for detection and segmentation
  simmim sample scans scans/       one channel of 16 bits"""


def main() -> None:
    """Parse the command line and write the images."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    with errors.one_line_errors():
        from simmim_plugin.datasets.preparation.sample_sets import KINDS, make

        parser.add_argument('kind', choices=KINDS, help='which')
        parser.add_argument('out', metavar='OUT', type=Path, help='a new folder')
        parser.add_argument('--seed', type=int, default=0, help='of the choice of crops (0)')
        args = parser.parse_args()
        print(f'{args.out}: {make(args.kind, args.out, args.seed)}')
