"""torchrun for dist_train.sh, which lets its ranks write a checkpoint on a signal.

On one machine it listens on the loopback address only; torchrun's own store listens on all addresses.
"""

import ipaddress
import os
import signal
import socket
import sys
from types import FrameType

from torch.distributed import TCPStore, run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import RendezvousInfo, static_tcp_rendezvous

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
SAVED = (os.EX_TEMPFAIL, 128 + signal.SIGINT)  # exit codes of ranks that have written a checkpoint
SECONDS = '150'  # time to write the checkpoint before torchrun kills the ranks


def hand_on(number: int, frame: FrameType | None) -> None:
    """Make torchrun forward the signal to its ranks and wait; of later ones, only a second SIGINT ends them at once."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        signal.signal(number, kill_ranks)
    raise SignalException(f'got {signal.Signals(number).name}', signal.Signals(number))


def kill_ranks(number: int, frame: FrameType | None) -> None:
    """End the wait for ranks that write a checkpoint."""
    for handler in ranks.values():
        if handler.proc.poll() is None:
            handler.close(signal.SIGKILL)


ranks: dict[int, SubprocessHandler] = {}
codes: list[int | None] = []  # exit codes of the ranks
close = SubprocessContext._close


def close_and_note(context: SubprocessContext, death_sig: signal.Signals, timeout: int = 30) -> None:
    """End the ranks as torchrun does, and keep their exit codes."""
    ranks.update(context.subprocess_handlers)
    close(context, death_sig, timeout)
    codes[:] = [handler.proc.returncode for handler in context.subprocess_handlers.values()]


monitor = LocalElasticAgent._monitor_workers


def monitor_and_stop(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
    """Look at the ranks as torchrun does, and restart none after one has written a checkpoint on a signal."""
    result = monitor(agent, group)
    if any(failure.exitcode in SAVED for failure in result.failures.values()):
        agent._remaining_restarts = 0
    return result


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
    LocalElasticAgent._monitor_workers = monitor_and_stop  # type: ignore[method-assign]
    SubprocessContext._close = close_and_note  # type: ignore[method-assign, assignment]
    os.environ['SIMMIM_PARENT'] = str(os.getpid())  # the ranks end with this process, see simmim_plugin.utils.errors
    # torchrun's own handlers would replace ours; PyTorch 2.13 takes the second name and overwrites the first.
    os.environ['TORCHELASTIC_SIGNALS_TO_HANDLE'] = os.environ['PET_SIGNALS_TO_HANDLE'] = 'SIGQUIT'
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', SECONDS)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, hand_on)
    try:
        run.main(sys.argv[1:])
    except SignalException as error:
        sys.exit(os.EX_TEMPFAIL if {*codes} == {os.EX_TEMPFAIL} else 128 + error.sigval)
    except ChildFailedError:
        # One rank got the signal, and all have saved. torchrun ends those that are still exiting by another SIGTERM.
        for saved in SAVED:
            if saved in codes and {*codes} <= {saved, -signal.SIGTERM}:
                sys.exit(saved)
        raise


if __name__ == '__main__':
    main()
