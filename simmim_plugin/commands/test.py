"""Evaluate a checkpoint with its config; for a classifier, also draw the confusion matrix."""

import argparse
import os

from simmim_plugin.commands.options import add_cfg_options, add_launcher
from simmim_plugin.utils.errors import keep_traceback_in

EXAMPLE = """example:
  {program} configs/finetune/vit-b_folder.py work_dirs/vit-b_folder/epoch_100.pth \\
      --cfg-options data_root=/path/to/data
  tools/dist_test.sh configs/finetune/vit-b_in1k.py work_dirs/vit-b_in1k/epoch_100.pth 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint trained with that config')
    parser.add_argument('--work-dir', help='folder of logs and pictures (work_dirs/<config name>)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: each image also flipped')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, also on CPUs')
    add_cfg_options(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate the checkpoint and print the metrics."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    from simmim_plugin.apis.test import run_test
    from simmim_plugin.apis.train import prepare
    from simmim_plugin.config import load_config
    from simmim_plugin.utils.distributed import leave_process_group

    cfg = load_config(args.config, args.cfg_options)
    prepare(cfg, args.config, args.work_dir, launcher=args.launcher)
    keep_traceback_in(cfg.work_dir)
    for line in run_test(cfg, args.checkpoint, args.amp, args.tta):
        print(line)
    leave_process_group()
