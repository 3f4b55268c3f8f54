"""Evaluate a checkpoint with a config; of a classifier, draw the confusion matrix, too."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin import config
from simmim_plugin.apis import train
from simmim_plugin.utils import distributed, errors

EXAMPLE = """example:
  python tools/test.py configs/finetune/vit-b_folder.py work_dirs/vit-b_folder/epoch_100.pth \\
      --cfg-options data_root=/path/to/data
  tools/dist_test.sh configs/finetune/vit-b_in1k.py work_dirs/vit-b_in1k/epoch_100.pth 8"""


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint of that config')
    parser.add_argument('--work-dir', help='folder of logs and pictures (work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, also on processors')
    config.add_cfg_options(parser)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='set by the scripts')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with errors.one_line_errors() as folders:
        from simmim_plugin.apis.test import run_test

        cfg = config.load_config(args.config, args.cfg_options)
        train.prepare(cfg, args.config, args.work_dir, launcher=args.launcher)
        folders.append(cfg.work_dir)
        for line in run_test(cfg, args.checkpoint, args.amp):
            print(line)
        distributed.leave_process_group()


if __name__ == '__main__':
    main()
