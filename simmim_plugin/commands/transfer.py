"""Compare pretraining with training from scratch on your labelled images: fine-tuning with tuned rates, and probes."""

import argparse
from pathlib import Path

from simmim_plugin.commands.options import add_comparison, add_pretraining
from simmim_plugin.utils.errors import keep_traceback_in
from simmim_plugin.utils.resources import CONFIGS

EXAMPLE = """example, on two CPU cores:
  {program} --data-root /path/to/clothing --out work_dirs/transfer --amp --jobs 2
  {program} --data-root /path/to/clothing --init weights.pth --out work_dirs/from_weights --amp --jobs 2

DATA_ROOT has train/ and val/, each with a folder per class. Run it again with the same --out to resume."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_comparison(parser, 'work_dirs/transfer')
    options_for = 'values of the pretraining and of all fine-tuning configs'
    add_pretraining(parser, 'simmim_vit-tiny_folder.py', options_for)
    parser.add_argument(
        '--finetune',
        nargs='+',
        default=[str(CONFIGS / f'finetune/vit-tiny_folder{share}.py') for share in ('', '_10pct')],
        metavar='CONFIG',
        help='fine-tuning configs for the same backbone, one per share of the labels '
        '(configs/finetune/vit-tiny_folder.py and ..._10pct.py)',
    )
    parser.add_argument(
        '--init',
        metavar='CHECKPOINT',
        help='compare these weights, as they are and continued on the images of DATA_ROOT, with training from scratch '
        'and with pretraining on these images alone; all configs get their architecture. A file or folder that '
        '`simmim convert` knows, timm:NAME or hf:NAME',
    )
    parser.add_argument(
        '--num-heads', type=int, help='with --init: attention heads of weights without bias tables (as published ones)'
    )
    parser.add_argument(
        '--continue',
        dest='continued',
        default=str(CONFIGS / 'simmim_vit-tiny_continue.py'),
        metavar='CONFIG',
        help='with --init: config of the pretraining that continues (configs/simmim_vit-tiny_continue.py)',
    )
    parser.add_argument(
        '--rates',
        type=float,
        nargs='+',
        default=[5e-4, 1.5e-3, 4e-3],
        help='learning rates to try (5e-4 1.5e-3 4e-3)',
    )


def run(args: argparse.Namespace) -> None:
    """Run the comparison and write its table and plot."""
    from simmim_plugin.checkpoints.start import read_start
    from simmim_plugin.experiments import report, runs, transfer, transfer_tables
    from simmim_plugin.utils.arguments import number

    out = runs.check_arguments(args)
    if args.init is None and args.num_heads is not None:
        raise ValueError(f'--num-heads {args.num_heads} is for --init; leave it out')
    keep_traceback_in(args.out)
    for rate in args.rates:
        number('--rates', rate, 0, ends='()')
    if len(set(args.rates)) < len(args.rates):
        raise ValueError(f'--rates={args.rates} must differ; give each once')
    configs = transfer.label_shares(args.finetune, args.data_root)
    images = Path(args.data_root) / 'train'
    init = None if args.init is None else read_start(args.init, args.num_heads)
    for line in init.assumed if init else ():
        print(line)
    settings = transfer.Settings(
        out, args.data_root, images, args.seeds, args.cfg_options, args.pretrain, configs, args.rates,
        init=init, continued=args.continued,
    )  # fmt: skip
    results = transfer.compare(settings, runs.Stages(args.jobs, args.amp))
    report.write_report(out, results, transfer_tables.table, transfer_tables.plot)
