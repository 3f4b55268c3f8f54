"""Part of dist_train.sh: torchrun that lets its processes write a checkpoint at SIGTERM and SIGUSR1."""

import os
import signal
import sys
from types import FrameType

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException

ANNOUNCE = (signal.SIGTERM, signal.SIGUSR1)
END = (signal.SIGINT, signal.SIGHUP)
SECONDS = '150'  # for the checkpoint; then torchrun kills


def hand_on(number: int, frame: FrameType | None) -> None:
    """Have torchrun send the signal to its processes and wait for them. A second signal would have it leave them."""
    for other in (*ANNOUNCE, *END):
        signal.signal(other, signal.SIG_IGN)
    raise SignalException(f'got {signal.Signals(number).name}', signal.Signals(number))


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    os.environ['TORCHELASTIC_SIGNALS_TO_HANDLE'] = 'SIGQUIT'  # torchrun's own handlers take every signal anew
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', SECONDS)
    for number in (*ANNOUNCE, *END):
        signal.signal(number, hand_on)
    try:
        run.main(sys.argv[1:])
    except SignalException as error:
        sys.exit(os.EX_TEMPFAIL if error.sigval in ANNOUNCE else 128 + error.sigval)


if __name__ == '__main__':
    main()
