"""Write the features of all images below a folder: pooled, class token, or per patch, of chosen blocks.

Nothing is masked. Images are resized (bicubic) and centre-cropped as for testing a classifier: 256 -> 224.
If interrupted, the same command resumes. docs/features.md describes the file.
"""

import argparse
import sys

from simmim_plugin.commands.options import add_device

EXAMPLE = """example:
  {program} work_dirs/quickstart/epoch_10.pth photos/ --out features.npz
  {program} vit-b.pth photos/ --out features.parquet --kinds pooled cls --blocks 8 12"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('checkpoint', help='checkpoint of a pretraining or fine-tuning; its config is read from it')
    parser.add_argument('folder', help='folder of images, searched recursively')
    parser.add_argument('--out', required=True, help='the file to write, .npz or .parquet')
    parser.add_argument(
        '--kinds', nargs='+', default=['pooled'], metavar='KIND',
        help='pooled (mean of the patch tokens), cls (class token), patches (one vector per patch) (pooled)',
    )  # fmt: skip
    parser.add_argument(
        '--blocks', nargs='+', metavar='N', help="numbers of blocks, the first is 1, or 'all' (the last)"
    )
    parser.add_argument('--size', type=int, nargs='+', metavar='PX', help="side, or height and width (the model's)")
    parser.add_argument('--batch-size', type=int, default=64, help='images per batch (64)')
    parser.add_argument('--workers', type=int, default=2, help='processes that read images (2)')
    add_device(parser)
    parser.add_argument('--dtype', default='float32', help='float32 or float16, of the stored features (float32)')


def run(args: argparse.Namespace) -> None:
    """Extract."""
    from simmim_plugin.apis.extract_features import check_arguments, extract_folder
    from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
    from simmim_plugin.models.layers.architecture import block_arguments

    check_arguments(args.out, args.batch_size, args.workers, args.dtype)
    blocks = block_arguments(args.blocks)
    extractor = FeatureExtractor(args.checkpoint, args.device, args.size, blocks, args.kinds)
    try:
        done = extract_folder(extractor, args.folder, args.out, args.batch_size, args.workers, args.dtype)
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command resumes it')
    if done.unreadable:
        print(f'{len(done.unreadable)} images could not be read, see {args.out}.unreadable.txt')
    print(f'features of {done.images} images: {args.out}')
