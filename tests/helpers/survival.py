"""Train in processes that are killed at random moments and started again, each forked from this one.

    python survival.py CONFIG WORK_DIR KILLS SEED

Prints as JSON how many were killed, and how many of them while a checkpoint was being written.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from simmim_plugin import config
from simmim_plugin.apis import train as api
from simmim_plugin.utils import files

SLOW_DISK = 0.05  # seconds that a file takes to reach it, so that some kills happen meanwhile


def train(path: str, work_dir: str) -> None:
    """Like tools/train.py --resume."""
    sync = files._sync

    def slow_sync(written: Path) -> None:
        time.sleep(SLOW_DISK)
        sync(written)

    files._sync = slow_sync
    cfg = config.load_config(path)
    cfg.experiment_name = str(time.time_ns())  # MMEngine's default only has seconds
    api.run_training(api.build_runner(api.prepare(cfg, path, work_dir, resume='auto')))


def start(path: str, work_dir: str) -> int:
    """Fork a process that trains, in its own process group with its workers; returns its id."""
    process = os.fork()
    if process == 0:
        os.setsid()
        log = os.open(f'{work_dir}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            train(path, work_dir)
            code = 0
        finally:
            os._exit(code)
    return process


def main(path: str, work_dir: str, kills: int, seed: int) -> None:
    """Kill `kills` processes, then let one finish."""
    moments = random.Random(seed)
    killed = halves = 0
    while killed < kills:
        process = start(path, work_dir)
        time.sleep(moments.uniform(0.1, 2.5))
        if os.waitpid(process, os.WNOHANG)[0]:
            raise SystemExit(f'finished or failed after {killed} kills, see {work_dir}.log')
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        killed += 1
        halves += bool(list(Path(work_dir).glob(f'.*{files.PART_SUFFIX}')))
    _, status = os.waitpid(start(path, work_dir), 0)
    if status:
        raise SystemExit(f'the last one failed, see {work_dir}.log')
    print(json.dumps(dict(killed=killed, while_writing=halves)))


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
