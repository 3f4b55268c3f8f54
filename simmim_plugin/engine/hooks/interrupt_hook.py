"""Save a checkpoint on a signal, and exit with a code that asks the scheduler to requeue the job."""

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.logging import print_log

from simmim_plugin.engine.hooks.checkpoint_hook import SimMIMCheckpointHook
from simmim_plugin.engine.runners.accumulation import gradients_are_pending
from simmim_plugin.engine.runners.mmengine_internals import block_in_new_workers, kill_workers, waits_for_batch
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import choice, names
from simmim_plugin.utils.errors import exit_code
from simmim_plugin.utils.invocation import resuming_command
from simmim_plugin.utils.runner_protocol import TrainingRunner

# Two cannot be handled, and SIGALRM is used here.
SIGNALS = sorted(signal.Signals.__members__.keys() - {'SIGKILL', 'SIGSTOP', 'SIGALRM'})
PATIENCE = 20  # seconds between a signal and the look whether the training waits for a worker that is stuck


class PatientWorker:
    """`worker_init_fn` of a data loader: its workers ignore the signals, which schedulers send to all processes.

    The training process still needs their batches and terminates them afterwards; after the training SIGTERM ends them.

    Args:
        signals: The signals.
        start: The loader's own `worker_init_fn`, called as well.
    """

    def __init__(self, signals: Sequence[signal.Signals], start: Callable[[int], None] | None) -> None:
        self.signals, self.start = signals, start
        self.leaving = torch.zeros(1, dtype=torch.uint8).share_memory_()
        atexit.register(
            self.leaving.fill_, 1
        )  # runs before PyTorch's handler that ends the workers, as that was registered earlier

    def __call__(self, worker: int) -> None:
        """Called in the worker, with its index."""
        for number in self.signals:
            signal.signal(number, self._outlive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
        if self.start is not None:
            self.start(worker)

    def _outlive(self, number: int, frame: Any) -> None:
        if self.leaving.item():
            os._exit(0)


@HOOKS.register_module()
class InterruptHook(Hook):
    """On a signal, write a checkpoint and exit with code 75 (SIGINT, Ctrl-C: 130); `--resume` continues the training.

    The checkpoint is written after the current iteration; with several ranks after the next one, when all ranks know
    about the signal, whichever received it; with accumulated gradients after their step. Slurm announces the end of a
    job by SIGUSR1 (`--signal=USR1@180`) or SIGTERM; SIGHUP comes when the terminal is gone. A second Ctrl-C ends the
    training at once, without a checkpoint; other signals may come again. Signals that the process ignores (`nohup`, a
    shell's background jobs) stay ignored. A training that has waited for its next batch for some 20 s since
    the signal ends at once: the workers are killed, as one may hang in a read; a single process writes its checkpoint.

    Args:
        signals: Names of the signals.

    Raises:
        ValueError: There is no such signal, or it cannot be handled.
    """

    priority = 'LOWEST'  # after everything else of the iteration

    def __init__(self, signals: Sequence[str] = ('SIGINT', 'SIGHUP', 'SIGTERM', 'SIGUSR1')) -> None:
        listed = names('InterruptHook.signals', signals, "e.g. ['SIGTERM', 'SIGUSR1']")
        self.signals = [signal.Signals[choice('InterruptHook.signals', name, SIGNALS)] for name in listed]
        self.received = 0  # the last signal
        self._stopping = 0  # the one that all ranks know about
        self._before: dict[signal.Signals, Any] = {}
        self._workers: PatientWorker | None = None
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def before_train(self, runner: TrainingRunner) -> None:
        """Install the signal handlers."""
        loader = runner.train_dataloader
        loader.worker_init_fn = self._workers = PatientWorker(self.signals, loader.worker_init_fn)
        block_in_new_workers(loader, self.signals)
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            handlers: dict[signal.Signals, Any] = dict.fromkeys(self.signals, self._note)
            handlers[signal.SIGALRM] = partial(self._look, runner)
            before = {number: signal.getsignal(number) for number in handlers}
            self._before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, handlers[number])
        if runner.world_size > 1:
            self._group = dist.new_group(backend='gloo')

    def after_train_iter(self, runner: TrainingRunner, *args: Any, **kwargs: Any) -> None:
        """Stop if a rank has received a signal."""
        self._stopping = self._stopping or self._agreed()
        if self._stopping and not gradients_are_pending(runner):
            self._stop(runner, runner.iter + 1, self._stopping)

    def after_train(self, runner: TrainingRunner) -> None:
        """Restore the previous handlers, here and in the workers."""
        if not self._stopping:
            self._agreed()
        if self._workers is not None:
            self._workers.leaving.fill_(1)
        if self._before:
            signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, runner: TrainingRunner, iterations: int, received: int) -> None:
        if self._before:
            signal.alarm(0)  # it would end a process that takes long to exit
        hook = next((hook for hook in runner.hooks if isinstance(hook, SimMIMCheckpointHook)), None)
        if hook is None:
            raise SystemExit(
                "stopped by a signal without a checkpoint: default_hooks.checkpoint is not a 'SimMIMCheckpointHook'"
            )
        path = hook.save_now(runner, iterations)
        name = signal.Signals(received).name
        print_log(
            f'{name}: stopped after iteration {iterations}; {path} is written. Continue with {resuming_command()}',
            'current',
        )
        if dist.is_initialized():
            dist.barrier()  # all ranks wait until it is written
            dist.destroy_process_group()
        raise SystemExit(exit_code(received))

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        signal.alarm(PATIENCE)
        if number == signal.SIGINT:
            signal.signal(number, self._before[signal.SIGINT])  # a second one interrupts at once

    def _look(self, runner: TrainingRunner, number: int, frame: Any) -> None:
        """Some seconds after the signal: end a training that waits for a worker that is stuck."""
        if not waits_for_batch(frame, runner.train_dataloader.dataset):
            signal.alarm(PATIENCE)  # a long step, or an evaluation
            return
        print_log(f'No batch for {PATIENCE} s: a worker of the data loader is stuck', 'current', logging.ERROR)
        try:
            if runner.world_size == 1 and runner.iter and not gradients_are_pending(runner):
                self._stop(runner, runner.iter, self.received)
            print_log('Stopped without a checkpoint; --resume continues from the last one', 'current')
            raise SystemExit(128 + self.received)
        finally:
            kill_workers()

    def _agreed(self) -> int:
        """The signal that a rank had received one iteration ago (with a single rank: now), or 0. Does not block."""
        if self._group is None:
            return self.received
        asked, self._asked = self._asked, None
        if asked is not None:
            asked[0].wait()
            if asked[1].item():
                return int(asked[1].item())
        flag = torch.tensor([self.received])
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True), flag
        return 0
