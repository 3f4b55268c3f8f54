"""Compare pretraining with training from scratch for detection and segmentation, config by config."""

import argparse

from simmim_plugin.commands.options import add_comparison, add_pretraining
from simmim_plugin.utils.errors import keep_traceback_in

EXAMPLE = """example, on two CPU cores:
  {program} configs/detection/mask-rcnn_vit-tiny_folder.py \\
      configs/segmentation/upernet_vit-tiny_folder.py --data-root /path/to/data --images /path/to/images --amp --jobs 2

DATA_ROOT has the layout that the configs expect. IMAGES is a folder of images without labels; links in it are
followed. Run it again with the same --out to resume."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of MMDetection or MMSegmentation')
    add_comparison(parser, 'work_dirs/transfer_dense', 'folder of the labelled data', (0, 1))
    parser.add_argument('--images', required=True, help='folder of the images to pretrain on')
    options_for = 'values of the pretraining config only; write leaf configs for the others'
    add_pretraining(parser, 'simmim_vit-tiny_dense.py', options_for)


def run(args: argparse.Namespace) -> None:
    """Run the comparison and write its table, plot and pictures."""
    from simmim_plugin.experiments import dense_transfer, report, runs

    out = runs.check_arguments(args)
    keep_traceback_in(args.out)
    settings = dense_transfer.Settings(
        out, args.data_root, args.images, args.seeds, args.cfg_options, args.pretrain, args.configs
    )
    results = dense_transfer.compare(settings, runs.Stages(args.jobs, args.amp))
    report.write_report(out, results, dense_transfer.table, dense_transfer.plot)
    for sheet in dense_transfer.draw_sheets(settings):
        print(f'predictions: {sheet}')
