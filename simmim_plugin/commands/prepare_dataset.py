"""Shrink a folder of images once: shorter side 288 px, JPEG of quality 90. Each epoch then decodes small files."""

import argparse
import os
from pathlib import Path

EXAMPLE = """example:
  {program} /path/to/images /path/to/small --workers 16
  {program} /path/to/images /path/to/small --shards-mb 256      (tar files too: small/shards)

Folders stay as they are, so a folder of classes remains one. What JPEG cannot hold (16 bits, TIFF, .npy) is copied.
Called again, it continues where it was stopped. Unreadable files are listed in unreadable.txt of the new folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('source', help='folder of images, searched recursively')
    parser.add_argument('target', help='folder of the small ones')
    parser.add_argument('--short-side', type=int, default=288, help='pixels; smaller photos stay as they are (288)')
    parser.add_argument('--quality', type=int, default=90, help='of the JPEGs, 1 to 95 (90)')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='threads (one per core)')
    parser.add_argument('--shards-mb', type=float, metavar='MB', help='also pack them into tar files (WebDataset)')


def run(args: argparse.Namespace) -> None:
    """Shrink, and print what was done."""
    from simmim_plugin.datasets.preparation.shrink import UNREADABLE, Settings, prepare_folder
    from simmim_plugin.datasets.tar_shards import write_shards

    counts = prepare_folder(args.source, args.target, Settings(args.short_side, args.quality), args.workers)
    done = ', '.join(f'{n} {what}' for what, n in counts.items() if not what.startswith('bytes'))
    sizes = ' -> '.join(f'{counts[name] / 2**20:.1f}' for name in ('bytes before', 'bytes after'))
    print(f'{args.target}: {done}; {sizes} MiB')
    if counts['unreadable']:
        print(f'listed: {Path(args.target, UNREADABLE)}')
    if args.shards_mb is not None:
        shards = write_shards(args.target, Path(args.target, 'shards'), args.shards_mb)
        print(f'{Path(args.target, "shards")}: {shards["images"]} images in {len(shards["shards"])} tar files')
