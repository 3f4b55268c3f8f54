"""What pretraining is worth on your labelled images: fine-tuning pretrained and from scratch, tuned alike; probes."""

import argparse
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from simmim_plugin import config, launch, stages

EXAMPLE = """example, on two CPU cores:
  python tools/transfer.py --data-root /path/to/clothing --out work_dirs/transfer --amp --jobs 2

DATA_ROOT has train/ and val/, each with a folder per class. Called again with the same --out, it goes on where it was
stopped."""


def main() -> None:
    """Parse the command line, run, and write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages.add_arguments(parser, 'work_dirs/transfer')
    parser.add_argument(
        '--pretrain',
        default=str(ROOT / 'configs/simmim_vit-tiny_folder.py'),
        help='pretraining config (configs/simmim_vit-tiny_folder.py)',
    )
    parser.add_argument(
        '--finetune',
        default=str(ROOT / 'configs/finetune/vit-tiny_folder.py'),
        help='fine-tuning config for the same backbone (configs/finetune/vit-tiny_folder.py)',
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        default=['100:15', '10:50'],
        metavar='PERCENT:EPOCHS',
        help='shares of the training labels, and epochs of fine-tuning with them (100:15 10:50)',
    )
    parser.add_argument(
        '--rates',
        type=float,
        nargs='+',
        default=[5e-4, 1.5e-3, 4e-3],
        help='learning rates to choose from (5e-4 1.5e-3 4e-3)',
    )
    config.add_cfg_options(parser)
    args = parser.parse_args()
    with launch.one_line_errors() as folders:
        from simmim_plugin import transfer

        out = stages.check_arguments(args)
        folders.append(args.out)
        labels = dict(map(_labels, args.labels))
        if len(labels) < len(args.labels) or len(set(args.rates)) < len(args.rates):
            raise ValueError(f'--labels {args.labels} and --rates {args.rates}: each share and rate only once')
        settings = transfer.Settings(
            out, args.data_root, args.pretrain, args.finetune, args.seeds, labels, args.rates, args.cfg_options
        )
        results = transfer.compare(settings, stages.Stages(args.jobs, args.amp))
        stages.write_report(out, results, transfer.table(results), functools.partial(transfer.plot, results))


def _labels(text: str) -> tuple[float, int]:
    percent, _, epochs = text.partition(':')
    try:
        share = float(percent) / 100, int(epochs)
    except ValueError:
        share = 0.0, 0
    if not (0 < share[0] <= 1 and share[1] > 0):
        raise ValueError(f'--labels {text}: give a percentage and epochs, such as 10:60')
    return share


if __name__ == '__main__':
    main()
