"""Train a config: pretraining, or any other config of MMEngine, MMPretrain, MMDetection or MMSegmentation."""

import argparse
import os

from simmim_plugin.commands.options import add_cfg_options, add_launcher
from simmim_plugin.utils.errors import keep_traceback_in

EXAMPLE = """example:
  {program} configs/simmim_vit-b_folder.py --cfg-options data_root=/path/to/images
  tools/dist_train.sh configs/simmim_vit-b.py 8          (8 GPUs, or 8 processes without GPUs)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('config', help='config file')
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all arguments except the config."""
    parser.add_argument('--work-dir', help='folder of logs, checkpoints and pictures (work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or from the last checkpoint in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, also on CPUs')
    parser.add_argument('--compile', action='store_true', help='compile the model; the first iteration takes a minute')
    add_cfg_options(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    """Train the config."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    from simmim_plugin.apis import train
    from simmim_plugin.config import load_config
    from simmim_plugin.utils.distributed import leave_process_group

    cfg = load_config(args.config, args.cfg_options)
    train.prepare(cfg, args.config, args.work_dir, args.resume, args.amp, args.launcher, args.compile)
    with train.claimed_work_dir(cfg):
        keep_traceback_in(cfg.work_dir)
        train.run_training(train.build_runner(cfg))
        leave_process_group()
