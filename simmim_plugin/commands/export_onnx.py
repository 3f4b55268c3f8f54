"""Export a backbone, or a classifier up to its logits, to ONNX, for any batch size, and check it in ONNX Runtime."""

import argparse

EXAMPLE = """example:
  {program} work_dirs/quickstart/epoch_10.pth backbone.onnx
  {program} finetuned.pth backbone.onnx --size 320 256 --out-type avg_featmap"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='checkpoint of this package (others: `simmim convert`)'
    )
    parser.add_argument('out', metavar='OUT.onnx', help='the file to write')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help="image size in pixels (the training's)"
    )
    parser.add_argument(
        '--out-type',
        choices=('avg_featmap', 'featmap', 'cls_token', 'raw'),
        help="features, see SimMIMViT (of a classifier: logits; else the training's)",
    )
    parser.add_argument('--any-size', action='store_true', help='one file for any height and width (not with windows)')
    parser.add_argument('--opset', type=int, help="ONNX opset version (the exporter's default)")


def run(args: argparse.Namespace) -> None:
    """Export."""
    from simmim_plugin.checkpoints.onnx import export_onnx

    size = args.size and (args.size[0], args.size[1])
    difference = export_onnx(args.checkpoint, args.out, size, args.out_type, args.opset, args.any_size)
    print(f'ONNX Runtime equals PyTorch, batches of 1 and 3: largest difference {difference:.2g}')
    print(f'written: {args.out}')
