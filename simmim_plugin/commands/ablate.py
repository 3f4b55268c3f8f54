"""Compare pretraining configs: each is pretrained, fine-tuned and judged by k-NN the same way, with several seeds."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from simmim_plugin import config
from simmim_plugin.experiments import report, runs
from simmim_plugin.utils import errors, files

EXAMPLE = """example, on two CPU cores:
  python tools/ablate.py configs/ablations/mask_{simmim,local,global,simultaneous}.py --scratch --seeds 0 1 2 \\
      --data-root /path/to/clothing --out work_dirs/ablation_masks --amp --jobs 2

DATA_ROOT has train/ and val/, each with a folder per class; labels are used for the evaluation alone. Called again
with the same --out, it goes on where it was stopped."""
BASE = ROOT / 'configs' / 'ablations' / '_base_'


def main() -> None:
    """Parse the command line, run, and write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('leaves', nargs='+', metavar='CONFIG', help='pretraining configs')
    runs.add_arguments(parser, 'work_dirs/ablation')
    parser.add_argument(
        '--size',
        default=str(BASE / 'small.py'),
        help="config laid over every leaf (configs/ablations/_base_/small.py); 'none' leaves them as they are",
    )
    parser.add_argument(
        '--finetune',
        default=str(BASE / 'finetune_small.py'),
        help='config of the fine-tuning, whose backbone fits the size (configs/ablations/_base_/finetune_small.py)',
    )
    parser.add_argument('--scratch', action='store_true', help='also fine-tune without pretraining')
    config.add_cfg_options(parser)
    args = parser.parse_args()
    with errors.one_line_errors() as folders:
        from simmim_plugin.experiments import ablation

        out = runs.check_arguments(args)
        folders.append(args.out)
        size = None if args.size == 'none' else args.size
        for path in (*args.leaves, args.finetune, *([size] if size else [])):
            if not Path(path).is_file():
                raise FileNotFoundError(f'config {path!r} does not exist (from {Path.cwd()})')
        images = Path(args.data_root) / 'train'
        settings = ablation.Settings(
            out, args.data_root, images, args.seeds, args.cfg_options, args.leaves, size, args.finetune, args.scratch
        )
        results = ablation.compare(settings, runs.Stages(args.jobs, args.amp))
        results = {**files.read_json(out / 'results.json'), **results}  # rows of earlier calls stay in the table
        report.write_report(out, results, ablation.table, ablation.plot)


if __name__ == '__main__':
    main()
