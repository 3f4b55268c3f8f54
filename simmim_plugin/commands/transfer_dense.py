"""What pretraining is worth for detection and segmentation: each config trained from scratch and pretrained."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.experiments import report, runs
from simmim_plugin.utils import errors

EXAMPLE = """example, on two CPU cores:
  python tools/transfer_dense.py configs/detection/mask-rcnn_vit-tiny_folder.py \\
      configs/segmentation/upernet_vit-tiny_folder.py --data-root /path/to/data --images /path/to/images --amp --jobs 2

DATA_ROOT is laid out as the configs want it. IMAGES is a folder of images without labels; links in it are followed.
Called again with the same --out, it goes on where it was stopped."""


def main() -> None:
    """Parse the command line, run, and write table, plot and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of MMDetection or MMSegmentation')
    runs.add_arguments(parser, 'work_dirs/transfer_dense', 'folder of the labelled data', (0, 1))
    parser.add_argument('--images', required=True, help='folder of the images to pretrain on')
    options_for = 'values of the pretraining config alone; for the others write leaf configs'
    runs.add_pretraining(parser, 'simmim_vit-tiny_dense.py', options_for)
    args = parser.parse_args()
    with errors.one_line_errors() as folders:
        from simmim_plugin.experiments import dense_transfer

        out = runs.check_arguments(args)
        folders.append(args.out)
        settings = dense_transfer.Settings(
            out, args.data_root, args.images, args.seeds, args.cfg_options, args.pretrain, args.configs
        )
        results = dense_transfer.compare(settings, runs.Stages(args.jobs, args.amp))
        report.write_report(out, results, dense_transfer.table, dense_transfer.plot)
        for sheet in dense_transfer.draw_sheets(settings):
            print(f'predictions: {sheet}')


if __name__ == '__main__':
    main()
