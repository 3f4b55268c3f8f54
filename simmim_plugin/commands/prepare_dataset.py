"""Shrink a folder of images once (shorter side 288 px, JPEG quality 90), so that each epoch decodes small files."""

import argparse
import os
from pathlib import Path

from simmim_plugin.commands.options import add_max_bytes

EXAMPLE = """example:
  {program} /path/to/images /path/to/small --workers 16
  {program} /path/to/images /path/to/small --shards-mb 256      (tar files too: small/shards)

The folder structure is kept, so class folders stay. What JPEG cannot store (16 bits, TIFF, .npy) is copied. Run it
again to resume. Unreadable files are listed in unreadable.txt in the new folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('source', help='folder of images, searched recursively')
    parser.add_argument('target', help='folder to write the small images to')
    parser.add_argument('--short-side', type=int, default=288, help='in pixels; smaller photos are not resized (288)')
    parser.add_argument('--quality', type=int, default=90, help='JPEG quality, 1 to 95 (90)')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='threads (one per core)')
    add_max_bytes(parser)
    parser.add_argument('--shards-mb', type=float, metavar='MB', help='also pack them into tar files (WebDataset)')


def run(args: argparse.Namespace) -> None:
    """Shrink the images and print the counts."""
    from simmim_plugin.datasets.preparation.shrink import UNREADABLE, Settings, prepare_folder
    from simmim_plugin.datasets.tar_shards import write_shards

    more = {} if args.max_bytes is None else {'max_bytes': args.max_bytes}
    settings = Settings(args.short_side, args.quality)
    counts = prepare_folder(args.source, args.target, settings, args.workers, **more)
    done = ', '.join(f'{n} {what}' for what, n in counts.items() if not what.startswith('bytes'))
    sizes = ' -> '.join(f'{counts[name] / 2**20:.1f}' for name in ('bytes before', 'bytes after'))
    print(f'{args.target}: {done}; {sizes} MiB')
    if counts['unreadable']:
        print(f'listed: {Path(args.target, UNREADABLE)}')
    if args.shards_mb is not None:
        shards = write_shards(args.target, Path(args.target, 'shards'), args.shards_mb)
        print(f'{Path(args.target, "shards")}: {shards["images"]} images in {len(shards["shards"])} tar files')
