"""Write a small sample data set, made of images that come with Python packages or are drawn."""

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
    parser.add_argument('kind', choices=KINDS, help='kind of data')
    parser.add_argument('out', metavar='OUT', type=Path, help='new folder')
    parser.add_argument('--seed', type=int, default=0, help='seed of the random choices (0)')


def run(args: argparse.Namespace) -> None:
    """Write the data set."""
    from simmim_plugin.datasets.preparation.sample_sets import make

    print(f'{args.out}: {make(args.kind, args.out, args.seed)}')
