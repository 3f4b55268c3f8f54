"""Part of dist_train.sh: torchrun that lets its processes write a checkpoint at SIGTERM and SIGUSR1.

On one machine it listens on the loopback address only; torchrun's store of addresses listens on all of them.
"""

import ipaddress
import os
import signal
import socket
import sys
from types import FrameType

from torch.distributed import TCPStore, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousInfo, static_tcp_rendezvous

ANNOUNCE = (signal.SIGTERM, signal.SIGUSR1)
END = (signal.SIGINT, signal.SIGHUP)
SECONDS = '150'  # for the checkpoint; then torchrun kills


def hand_on(number: int, frame: FrameType | None) -> None:
    """Have torchrun send the signal to its processes and wait for them. A second signal would have it leave them."""
    for other in (*ANNOUNCE, *END):
        signal.signal(other, signal.SIG_IGN)
    raise SignalException(f'got {signal.Signals(number).name}', signal.Signals(number))


class Rendezvous(static_tcp_rendezvous.StaticTCPRendezvous):
    """torchrun's, with a store that listens on the master's address where that is a loopback one."""

    def next_rendezvous(self) -> RendezvousInfo:
        """Start the store in the first launcher; torchrun's method connects the others to it."""
        if is_loopback(self.master_addr):
            names = [name for _, name in socket.if_nameindex() if name.startswith('lo')]
            os.environ.setdefault('GLOO_SOCKET_IFNAME', names[0])  # else where the machine's name leads
            if self.rank == 0 and self._store is None:
                family = socket.AF_INET6 if ':' in self.master_addr else socket.AF_INET
                with socket.create_server((self.master_addr, self.master_port), family=family) as listener:
                    number = listener.detach()
                self._store = TCPStore(
                    self.master_addr, self.master_port, self.world_size, True, self.timeout, multi_tenant=True,
                    master_listen_fd=number,
                )  # fmt: skip
        return super().next_rendezvous()


def is_loopback(address: str) -> bool:
    """Whether an address leads to this machine only. A name may lead elsewhere from other machines."""
    try:
        return address == 'localhost' or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    static_tcp_rendezvous.StaticTCPRendezvous = Rendezvous  # type: ignore[misc]
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
