"""Write a small data set from what comes inside wheels, to try the rest with."""

import argparse
from pathlib import Path

EXAMPLE = """example:
  {program} photos photos/     images without labels
  {program} digits digits/     train/<class>/ and val/<class>/
  {program} shapes shapes/     boxes, outlines and masks, for detection and segmentation
  {program} scans scans/       one channel of 16 bits"""

KINDS = ('photos', 'digits', 'shapes', 'scans')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('kind', choices=KINDS, help='which')
    parser.add_argument('out', metavar='OUT', type=Path, help='a new folder')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of crops (0)')


def run(args: argparse.Namespace) -> None:
    """Write the images."""
    from simmim_plugin.datasets.preparation.sample_sets import make

    print(f'{args.out}: {make(args.kind, args.out, args.seed)}')
