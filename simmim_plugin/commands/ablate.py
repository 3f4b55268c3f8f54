"""Compare pretraining configs: pretrain each with several seeds, then fine-tune it and evaluate it with k-NN."""

import argparse
from pathlib import Path

from simmim_plugin.commands.options import add_cfg_options, add_comparison
from simmim_plugin.utils.errors import keep_traceback_in
from simmim_plugin.utils.files import read_json
from simmim_plugin.utils.resources import CONFIGS

EXAMPLE = """example, on two CPU cores:
  {program} configs/ablations/mask_{{simmim,local,global,simultaneous}}.py --scratch --seeds 0 1 2 \\
      --data-root /path/to/clothing --out work_dirs/ablation_masks --amp --jobs 2

DATA_ROOT has train/ and val/, each with a folder per class; labels are used for evaluation only. Run it again
with the same --out to resume."""
BASE = CONFIGS / 'ablations' / '_base_'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('leaves', nargs='+', metavar='CONFIG', help='pretraining configs')
    add_comparison(parser, 'work_dirs/ablation')
    parser.add_argument(
        '--size',
        default=str(BASE / 'small.py'),
        help="config merged into every leaf (configs/ablations/_base_/small.py); 'none' keeps them unchanged",
    )
    parser.add_argument(
        '--finetune',
        default=str(BASE / 'finetune_small.py'),
        help='fine-tuning config with a backbone of the same size (configs/ablations/_base_/finetune_small.py)',
    )
    parser.add_argument('--scratch', action='store_true', help='also fine-tune without pretraining')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Run the comparison and write its table and plot."""
    from simmim_plugin.experiments import ablation, report, runs

    out = runs.check_arguments(args)
    keep_traceback_in(args.out)
    size = None if args.size == 'none' else args.size
    for path in (*args.leaves, args.finetune, *([size] if size else [])):
        if not Path(path).is_file():
            raise FileNotFoundError(f'config {path!r} does not exist (from {Path.cwd()})')
    images = Path(args.data_root) / 'train'
    settings = ablation.Settings(
        out, args.data_root, images, args.seeds, args.cfg_options, args.leaves, size, args.finetune, args.scratch
    )
    results = ablation.compare(settings, runs.Stages(args.jobs, args.amp))
    results = {**read_json(out / 'results.json'), **results}  # rows of earlier calls stay in the table
    report.write_report(out, results, ablation.table, ablation.plot)
