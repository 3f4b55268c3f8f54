"""torchrun for dist_train.sh, which lets its ranks write a checkpoint on SIGTERM and SIGUSR1.

On one machine it listens on the loopback address only; torchrun's own store listens on all addresses.
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
SECONDS = '150'  # time to write the checkpoint before torchrun kills the ranks


def hand_on(number: int, frame: FrameType | None) -> None:
    """Make torchrun forward the signal to its ranks and wait; later signals are ignored, as they would end the wait."""
    for other in (*ANNOUNCE, *END):
        signal.signal(other, signal.SIG_IGN)
    raise SignalException(f'got {signal.Signals(number).name}', signal.Signals(number))


class Rendezvous(static_tcp_rendezvous.StaticTCPRendezvous):
    """torchrun's static rendezvous, with a store that listens on the master's address if that is a loopback one."""

    def next_rendezvous(self) -> RendezvousInfo:
        """Start the store in the first launcher; torchrun's method connects the others to it."""
        if is_loopback(self.master_addr):
            names = [name for _, name in socket.if_nameindex() if name.startswith('lo')]
            os.environ.setdefault('GLOO_SOCKET_IFNAME', names[0])  # default: the interface of the host name
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
    """Whether an address is loopback; host names other than localhost may resolve differently on other machines."""
    try:
        return address == 'localhost' or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    static_tcp_rendezvous.StaticTCPRendezvous = Rendezvous  # type: ignore[misc]
    os.environ['TORCHELASTIC_SIGNALS_TO_HANDLE'] = 'SIGQUIT'  # torchrun's own handlers react to each signal again
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', SECONDS)
    for number in (*ANNOUNCE, *END):
        signal.signal(number, hand_on)
    try:
        run.main(sys.argv[1:])
    except SignalException as error:
        sys.exit(os.EX_TEMPFAIL if error.sigval in ANNOUNCE else 128 + error.sigval)


if __name__ == '__main__':
    main()
