"""Train a config: pretraining, and every other config of MMEngine, MMPretrain, MMDetection or MMSegmentation."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin import config
from simmim_plugin.apis import train
from simmim_plugin.utils import distributed, errors

EXAMPLE = """example:
  python tools/train.py configs/simmim_vit-b_folder.py --cfg-options data_root=/path/to/images
  tools/dist_train.sh configs/simmim_vit-b.py 8          (8 GPUs, or 8 processes where there is none)"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of logs, checkpoints and pictures (work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from PATH, or the last checkpoint in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, also on processors')
    parser.add_argument('--compile', action='store_true', help='compile the model; the first iteration takes a minute')
    config.add_cfg_options(parser)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='set by the scripts')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with errors.one_line_errors() as folders:
        cfg = config.load_config(args.config, args.cfg_options)
        train.prepare(cfg, args.config, args.work_dir, args.resume, args.amp, args.launcher, args.compile)
        folders.append(cfg.work_dir)
        train.run_training(train.build_runner(cfg))
        distributed.leave_process_group()


if __name__ == '__main__':
    main()
