"""Signals that announce the end: a checkpoint, and an exit that tells schedulers to start the training again."""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.logging import print_log

from simmim_plugin.engine.hooks.checkpoint_hook import SimMIMCheckpointHook
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import choice, names
from simmim_plugin.utils.errors import EXIT_CODE
from simmim_plugin.utils.runner_protocol import TrainingRunner

SIGNALS = sorted(signal.Signals.__members__.keys() - {'SIGKILL', 'SIGSTOP'})  # those two cannot be handled


class PatientWorker:
    """Start of a data loader's worker process: it outlives the signals, which schedulers send to everybody.

    Its training process still wants its batches, and ends it afterwards: by SIGTERM, too, once the training is over.

    Args:
        signals: The signals.
        start: What else is to be done at the start of a worker.
    """

    def __init__(self, signals: Sequence[signal.Signals], start: Callable[[int], None] | None) -> None:
        self.signals, self.start = signals, start
        self.leaving = torch.zeros(1, dtype=torch.uint8).share_memory_()
        atexit.register(self.leaving.fill_, 1)  # comes before the end of the workers, which was registered earlier

    def __call__(self, worker: int) -> None:
        """Called in the worker, with its number."""
        for number in self.signals:
            signal.signal(number, self._outlive)
        if self.start is not None:
            self.start(worker)

    def _outlive(self, number: int, frame: Any) -> None:
        if self.leaving.item():
            os._exit(0)


@HOOKS.register_module()
class InterruptHook(Hook):
    """After a signal write a checkpoint and exit with code 75, to go on with `--resume`.

    It is written after the iteration at hand; with several processes after the next, when all of them know, whichever
    got the signal. Slurm announces the end of a job by SIGUSR1 (`--signal=USR1@180`) or SIGTERM.

    Args:
        signals: Their names.
    """

    priority = 'LOWEST'  # everything of the iteration is done

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1')) -> None:
        listed = names('InterruptHook.signals', signals, "e.g. ['SIGTERM', 'SIGUSR1']")
        self.signals = [signal.Signals[choice('InterruptHook.signals', name, SIGNALS)] for name in listed]
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._workers: PatientWorker | None = None
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def before_train(self, runner: TrainingRunner) -> None:
        """Listen to the signals."""
        loader = runner.train_dataloader
        loader.worker_init_fn = self._workers = PatientWorker(self.signals, loader.worker_init_fn)
        if threading.current_thread() is threading.main_thread():  # others cannot listen
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
        if runner.world_size > 1:
            self._group = dist.new_group(backend='gloo')

    def after_train_iter(self, runner: TrainingRunner, *args: Any, **kwargs: Any) -> None:
        """Stop if a process has got a signal."""
        if self._agreed():
            self._stop(runner)

    def after_train(self, runner: TrainingRunner) -> None:
        """Listen no more, nor shall the workers."""
        self._agreed()
        if self._workers is not None:
            self._workers.leaving.fill_(1)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, runner: TrainingRunner) -> None:
        hook = next((hook for hook in runner.hooks if isinstance(hook, SimMIMCheckpointHook)), None)
        if hook is None:
            raise SystemExit(
                "stopped by a signal; no checkpoint, as default_hooks.checkpoint is no 'SimMIMCheckpointHook'"
            )
        iterations = runner.iter + 1
        path = hook.save_now(runner, iterations)
        name = self.received.name if self.received else 'A signal of another process'
        print_log(f'{name}: stopped after iteration {iterations}; {path} is written. Go on with --resume', 'current')
        if dist.is_initialized():
            dist.barrier()  # nobody leaves before it is written
            dist.destroy_process_group()
        raise SystemExit(EXIT_CODE)

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)

    def _agreed(self) -> bool:
        """Whether a process had got a signal one iteration ago (with one process: now). Nobody waits for it."""
        if self._group is None:
            return self.received is not None
        asked, self._asked = self._asked, None
        if asked is not None:
            asked[0].wait()
            if asked[1].item():
                return True
        flag = torch.tensor([float(self.received is not None)])
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True), flag
        return False
