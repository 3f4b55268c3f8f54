"""Convert checkpoints of ViTs and Swins between this package, the official code, timm, Hugging Face and MMPretrain.

The format of the source is detected. No code in it is run: only tensors and plain values are read.
"""

import argparse

EXAMPLE = """example:
  {program} official_pretrain.pth simmim.pth --to plugin
  {program} work_dirs/simmim_vit-b/epoch_800.pth beit.safetensors --to timm
  {program} work_dirs/simmim_vit-b/epoch_800.pth beit_folder --to hf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        'source', metavar='SRC', help='.pth or .safetensors file, Hugging Face folder, timm:NAME or hf:NAME'
    )
    parser.add_argument('target', metavar='DST', help='.pth or .safetensors file; a folder for --to hf')
    kinds = ('plugin', 'official', 'timm', 'hf', 'mmpretrain', 'backbone')
    parser.add_argument(
        '--to', required=True, choices=kinds, help='backbone: the bare weights, for MMDetection and MMSegmentation'
    )
    parser.add_argument(
        '--ignore-objects',
        action='store_true',
        help='read the tensors of a file that also holds Python objects; no object is loaded',
    )
    parser.add_argument(
        '--img-size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="image size of DST in pixels: bias tables and position embedding are interpolated (SRC's)",
    )
    parser.add_argument('--patch-size', type=int, help="side of a patch of DST in pixels: kernels are resized (SRC's)")
    parser.add_argument('--in-channels', type=int, help="channels of the images of DST (SRC's)")
    parser.add_argument(
        '--adapt-channels', choices=('repeat', 'mean'), default='repeat',
        help='for --in-channels: the weights of each channel in turn, or their mean; scaled to keep the sum (repeat)',
    )  # fmt: skip
    parser.add_argument('--num-heads', type=int, help='heads of a model without bias tables (as published ones)')
    parser.add_argument('--mean', type=float, nargs='+', help="per channel, 0 ... 255, for the config (ImageNet's)")
    parser.add_argument('--std', type=float, nargs='+', help="per channel, 0 ... 255, for the config (ImageNet's)")


def run(args: argparse.Namespace) -> None:
    """Convert."""
    from simmim_plugin.checkpoints.convert import convert_file

    objects = 'ignore' if args.ignore_objects else 'known'
    size = args.img_size and (args.img_size[0], args.img_size[1])
    report = convert_file(
        args.source, args.target, args.to, size, args.num_heads, args.mean, args.std, objects,
        args.in_channels, args.adapt_channels, args.patch_size,
    )  # fmt: skip
    print(f'recognised: {report.kind}')
    for name in report.left_out:
        print(f'left out: {name}')
    for line in report.notes:
        print(line)
    print(f'{report.tensors} tensors written: {args.target}')
