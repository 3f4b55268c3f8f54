"""Draw how a pretrained model reconstructs masked images: original | masked | reconstruction | composite."""

import argparse

from simmim_plugin.commands.options import add_device

EXAMPLE = """example:
  {program} work_dirs/quickstart/epoch_10.pth photo1.jpg photo2.jpg --out picture.png
  {program} work_dirs/quickstart/epoch_10.pth photo.jpg --mask mask.png     (fill in the white parts)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('checkpoint', help='checkpoint of a pretraining; its config is read from it')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument('--out', default='reconstruction.png', help='the picture (reconstruction.png)')
    parser.add_argument('--mask-ratio', type=float, help="share of units to mask (the training's)")
    parser.add_argument(
        '--mask', help='image of the same size as the photo, white where to mask; replaces the random masks'
    )
    parser.add_argument('--size', type=int, nargs='+', help="side, or height and width, in pixels (the training's)")
    parser.add_argument('--seed', type=int, default=0, help='seed of the masks (0)')
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Reconstruct the images and draw the picture."""
    from simmim_plugin.apis.reconstruct import reconstruct_files
    from simmim_plugin.utils.arguments import sides
    from simmim_plugin.utils.files import printable

    size = args.size and sides('--size', args.size if len(args.size) > 1 else args.size[0])
    losses = reconstruct_files(
        args.checkpoint, args.images, args.out, args.mask_ratio, size, args.seed, args.device, args.mask
    )
    for path, loss in zip(args.images, losses):
        print(f'masked loss {loss:.4f}  {printable(path)}')
    print(f'picture: {args.out}')
