"""Train in processes that are ended at random moments and started again, each forked from this one.

    python survival.py CONFIG WORK_DIR ENDS SEED [PROCESSES]

How they end is drawn, too: SIGKILL to all or one, or a signal that lets them save, perhaps with a second one meanwhile.
Checks exit codes, and that each checkpoint is whole. After so many ends, or at its own end, the training finishes.
Prints as JSON how often each end came, and how many met a file that was being written.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import mmengine.config.config
from mmengine.hooks import Hook

from simmim_plugin import config
from simmim_plugin.apis import train as api
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.utils import files
from simmim_plugin.utils.distributed import leave_process_group
from simmim_plugin.utils.errors import one_line_errors

SLOW_DISK = 0.05  # seconds that a file takes to reach it, so that some ends come meanwhile
SAVED = 75
# First signal, second one (up to 0.3 s later), exit codes; with 130 there may be a checkpoint.
HOW = [
    ('SIGKILL', None, {-9}),
    ('SIGINT', None, {130}),
    ('SIGINT', 'SIGINT', {130}),
    ('SIGHUP', None, {SAVED, 129}),
    ('SIGTERM', 'SIGTERM', {SAVED, 143}),
    ('SIGTERM', 'SIGKILL', {SAVED, 143, -9}),
]
WEIGHTS = [5, 1, 1, 1, 1, 1]
EARLY = 0.2  # share of the ends that may come before the training begins


class Started(Hook):
    """Reports to the parent that the training begins."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def before_train_epoch(self, runner: object) -> None:
        os.write(self.pipe, b'.')


def train(path: str, work_dir: str, launcher: str, pipe: int) -> None:
    """Like tools/train.py --resume."""
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)  # most of the time to start
    sync = files._sync

    def slow_sync(written: Path) -> None:
        time.sleep(SLOW_DISK)
        sync(written)

    files._sync = slow_sync
    cfg = config.load_config(path)
    cfg.experiment_name = str(time.time_ns())  # MMEngine's default only has seconds
    runner = api.build_runner(api.prepare(cfg, path, work_dir, resume='auto', launcher=launcher))
    runner.register_hook(Started(pipe))
    api.run_training(runner)
    leave_process_group()


def start(path: str, work_dir: str, processes: int, pipe: int) -> list[int]:
    """Fork processes that train, each in its own process group with its workers; returns their ids."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), GLOO_SOCKET_IFNAME='lo', WORLD_SIZE=str(processes))
    ranks = []
    for rank in range(processes):
        # A signal that comes before `one_line_errors` waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
        ranks.append(os.fork())
        if ranks[-1] > 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        else:
            code: object = 1
            try:
                os.setsid()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                log = os.open(f'{work_dir}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
                with one_line_errors():
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                    train(path, work_dir, 'none' if processes == 1 else 'pytorch', pipe)
                code = 0
            except SystemExit as error:
                code = error.code
                print(code, flush=True)
            except KeyboardInterrupt:  # before or after `one_line_errors`
                code = 130
            finally:
                os._exit(code if isinstance(code, int) else 1)
    return ranks


def wait(ranks: list[int], seconds: float) -> list[int]:
    """Exit codes; as torchrun does, ranks that have not ended so long after another one are killed."""
    codes: dict[int, int] = {}
    until = None
    while len(codes) < len(ranks):
        for rank in set(ranks) - codes.keys():
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                until = until or time.monotonic() + seconds
            elif until and time.monotonic() > until:
                os.kill(rank, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[rank] for rank in ranks]


def send(ranks: list[int], name: str) -> None:
    """A signal to all ranks and their workers; a rank that has ended and was not waited for gets it still."""
    for rank in ranks:
        try:
            os.killpg(rank, signal.Signals[name])
        except ProcessLookupError:  # before `setsid`
            os.kill(rank, signal.Signals[name])


def is_right(codes: list[int], allowed: set[int], second: str | None) -> bool:
    """A rank whose peer is gone meets a closed connection, or is killed; but all have saved, or none."""
    if len(codes) > 1 and (SAVED not in codes or second == 'SIGKILL'):
        return set(codes) <= allowed | {0, 1, -9}
    return set(codes) <= allowed and len(set(codes)) == 1


def main(path: str, work_dir: str, ends: int, seed: int, processes: int) -> None:
    """End the training `ends` times, then let it finish."""
    moments = random.Random(seed)
    counts: Counter[str] = Counter()
    codes = [1]
    while set(codes) != {0}:
        begun, pipe = os.pipe()
        ranks = start(path, work_dir, processes, pipe)
        os.close(pipe)
        first, second, allowed = moments.choices(HOW, WEIGHTS)[0]
        alone = first == 'SIGKILL' and processes > 1 and moments.random() < 0.5
        stop = counts['ended'] < ends
        if stop:
            if moments.random() < EARLY:
                time.sleep(moments.uniform(0, 2))
            else:
                os.read(begun, 1)
                time.sleep(moments.uniform(0, 0.7))
            send(ranks[:1] if alone else ranks, first)
            if second is not None:
                time.sleep(moments.uniform(0, 0.3))
                send(ranks, second)
        codes = wait(ranks, 3 if alone else 20)
        os.close(begun)
        if set(codes) != {0}:
            if not stop or not is_right(codes, allowed, second):
                raise SystemExit(f'{first} {second}: exit codes {codes}, see {work_dir}.log')
            counts['ended'] += 1
            counts[f'{first} {second or ""}{"alone" * alone}'.strip()] += 1
            counts[f'code {codes[-1]}'] += 1
            counts['while writing'] += bool(list(Path(work_dir).glob(f'.*{files.PART_SUFFIX}')))
        for file in Path(work_dir).glob('*.pth'):
            load_file(file)  # raises if it is not whole
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank, signal.SIGKILL)  # workers that look for their parent every 5 s
    print(json.dumps(counts))


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], *map(int, [*sys.argv[3:], 1][:3]))
