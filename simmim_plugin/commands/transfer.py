"""What pretraining is worth on your labelled images: fine-tuning pretrained and from scratch, tuned alike; probes."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from simmim_plugin.experiments import runs
from simmim_plugin.utils import errors

EXAMPLE = """example, on two CPU cores:
  python tools/transfer.py --data-root /path/to/clothing --out work_dirs/transfer --amp --jobs 2

DATA_ROOT has train/ and val/, each with a folder per class. Called again with the same --out, it goes on where it was
stopped."""


def main() -> None:
    """Parse the command line, run, and write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs.add_arguments(parser, 'work_dirs/transfer')
    options_for = 'values of the pretraining and of all fine-tuning configs'
    runs.add_pretraining(parser, 'simmim_vit-tiny_folder.py', options_for)
    parser.add_argument(
        '--finetune',
        nargs='+',
        default=[str(ROOT / f'configs/finetune/vit-tiny_folder{share}.py') for share in ('', '_10pct')],
        metavar='CONFIG',
        help='fine-tuning configs for the same backbone, one for each share of the labels '
        '(configs/finetune/vit-tiny_folder.py and ..._10pct.py)',
    )
    parser.add_argument(
        '--rates',
        type=float,
        nargs='+',
        default=[5e-4, 1.5e-3, 4e-3],
        help='learning rates to choose from (5e-4 1.5e-3 4e-3)',
    )
    args = parser.parse_args()
    with errors.one_line_errors() as folders:
        from simmim_plugin.experiments import report, transfer

        out = runs.check_arguments(args)
        folders.append(args.out)
        if len(set(args.rates)) < len(args.rates):
            raise ValueError(f'--rates {args.rates}: each only once')
        configs = transfer.label_shares(args.finetune, args.data_root)
        images = Path(args.data_root) / 'train'
        settings = transfer.Settings(
            out, args.data_root, images, args.seeds, args.cfg_options, args.pretrain, configs, args.rates
        )
        results = transfer.compare(settings, runs.Stages(args.jobs, args.amp))
        report.write_report(out, results, transfer.table, transfer.plot)


if __name__ == '__main__':
    main()
