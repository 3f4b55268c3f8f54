"""Export the backbone of a checkpoint to ONNX, for any batch size, and check it in ONNX Runtime."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.utils import errors

EXAMPLE = """example:
  python tools/export_onnx.py work_dirs/quickstart/epoch_10.pth backbone.onnx
  python tools/export_onnx.py finetuned.pth backbone.onnx --size 320 256 --out-type avg_featmap"""


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of this package; others: convert_checkpoint.py first')
    parser.add_argument('out', metavar='OUT.onnx', help='the file to write')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help="of the images in pixels (the training's)"
    )
    parser.add_argument(
        '--out-type', choices=('avg_featmap', 'featmap', 'cls_token', 'raw'), help="see SimMIMViT (the training's)"
    )
    parser.add_argument('--opset', type=int, help="version of ONNX's operators (the exporter's choice)")
    args = parser.parse_args()
    with errors.one_line_errors():
        from simmim_plugin.checkpoints.onnx import export_onnx

        size = args.size and (args.size[0], args.size[1])
        difference = export_onnx(args.checkpoint, args.out, size, args.out_type, args.opset)
        print(f'ONNX Runtime equals PyTorch, batches of 1 and 3: largest difference {difference:.2g}')
        print(f'written: {args.out}')


if __name__ == '__main__':
    main()
