"""Measure a training step (forward, backward, clipping, AdamW) on a batch that is already on the device."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo.utils
from torch import Tensor, nn
from tqdm import tqdm

from simmim_plugin.benchmark.subjects import PATCH, RATIO, UNIT, Subject, subjects
from simmim_plugin.benchmark.timing import spread
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.models.masks import random_mask
from simmim_plugin.utils.arguments import choice, multiple, whole
from simmim_plugin.utils.counters import OperatorCounter, count_flops, saved_bytes

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
WARM_UP = 2


@dataclass
class Settings:
    """Settings of the step benchmark.

    Args:
        arch: 'small', 'base', 'large' or 'huge'.
        img_size: Side in pixels, a multiple of 32.
        batch: Images per step.
        dtypes: Names in `DTYPES`; bfloat16 is autocast.
        repeats: Interleaved repeats of every subject.
        steps: Steps per repeat.
        device: 'cpu' or 'cuda'.
        only: Names of the subjects to measure; empty for all.

    Raises:
        ValueError: An argument is out of range.
    """

    arch: str = 'small'
    img_size: int = 224
    batch: int = 8
    dtypes: Sequence[str] = ('float32', 'bfloat16')
    repeats: int = 7
    steps: int = 1
    device: str = 'cpu'
    only: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        choice('arch', self.arch, ARCHS)
        multiple('img_size', self.img_size, UNIT, 'whole mask units')
        for name in ('batch', 'repeats', 'steps'):
            whole(name, getattr(self, name), 1)
        for dtype in self.dtypes:
            choice('dtypes', dtype, DTYPES)
        choice('device', self.device, ('cpu', 'cuda'))
        known = [subject.name for subject in subjects(self.arch, self.img_size)]
        for name in self.only:
            choice('only', name, known)


class Step:
    """The training step of one subject in one dtype."""

    def __init__(self, subject: Subject, dtype: str, settings: Settings, images: Tensor, mask: Tensor) -> None:
        torch.manual_seed(0)
        self.name, self.dtype, self.device = subject.name, dtype, settings.device
        self.model = subject.build().to(settings.device).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True if subject.fused else None)
        if subject.compiled:
            self.model.compile(fullgraph=True)
        self.compiled = subject.compiled
        self.images, self.mask = images, mask

    def __call__(self) -> None:
        """Run one step."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == 'bfloat16'):
            loss = self.model(self.images, self.mask)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def warm_up(self) -> dict[str, Any]:
        """Run the first steps, and count graphs, operators and saved bytes."""
        counters = torch._dynamo.utils.counters
        counters.clear()
        for _ in range(WARM_UP):
            self()
        counts: dict[str, Any] = dict(graphs=None, breaks=None, operators=None, saved_bytes=None)
        if self.compiled:
            counts.update(graphs=counters['stats']['unique_graphs'], breaks=sum(counters['graph_break'].values()))
        else:
            with OperatorCounter() as operators:
                self()
            counts['operators'] = sum(operators.counts.values())
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == 'bfloat16'):
            counts['saved_bytes'] = saved_bytes(self.model, self.images, self.mask)
        return counts

    def seconds(self, steps: int) -> float:
        """Mean seconds of a step over several."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self()
        self._wait()
        return (time.perf_counter() - start) / steps

    def peak_bytes(self) -> int | None:
        """Peak device memory of a step with its weights and optimiser state; None on the CPU."""
        if self.device == 'cpu':
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self()
        torch.cuda.synchronize()
        own = 3 * sum(p.numel() * p.element_size() for p in self.parameters)  # weights and two moments
        return torch.cuda.max_memory_allocated() - before + own

    def _wait(self) -> None:
        if self.device != 'cpu':
            torch.cuda.synchronize()


def measure_step(settings: Settings) -> dict[str, Any]:
    """Measure all subjects, interleaved.

    Returns:
        `settings`; `matmul_flops`: rate of large matrix products per dtype, in FLOP/s; `rows`: one per subject and
        dtype; `skipped`: reasons by name.
    """
    images, mask = batch_of(settings)
    rates = {dtype: matmul_flops(settings.device, DTYPES[dtype]) for dtype in settings.dtypes}
    skipped: dict[str, str] = {}
    no_memory = f'out of memory at batch {settings.batch}; fewer models (--only, --dtypes) or a smaller --batch may fit'
    steps: dict[str, Step] = {}
    counts: dict[str, dict[str, Any]] = {}
    chosen = [s for s in subjects(settings.arch, settings.img_size) if not settings.only or s.name in settings.only]
    for subject in tqdm(chosen, desc='build and count', unit='model'):
        try:
            flops = count_flops(subject.build, images[:1], mask[:1])
        except ImportError as error:
            skipped[subject.name] = f'not installed: {error}'
            continue
        for dtype in settings.dtypes:
            name = f'{subject.name}, {dtype}'
            if (built := _built(subject, dtype, settings, images, mask)) is None:
                skipped[name] = no_memory
            else:
                steps[name], counts[name] = built[0], {**built[1], 'flops_per_image': flops}
            built = None
            _free_memory()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(settings.repeats), desc='measure', unit='repeat'):
        for name in list(steps):
            try:
                times[name].append(steps[name].seconds(settings.steps))
            except torch.OutOfMemoryError:  # models built later also take memory
                skipped[name] = no_memory
            if name in skipped:
                del steps[name]
                _free_memory()
    rows = [{**counts[name], **_speed(counts[name], times[name], settings.batch, rates)} for name in steps]
    return dict(settings=vars(settings), matmul_flops=rates, rows=rows, skipped=skipped)


def _built(
    subject: Subject, dtype: str, settings: Settings, images: Tensor, mask: Tensor
) -> tuple[Step, dict[str, Any]] | None:
    """A warmed-up step and its counts; None if it runs out of memory."""
    try:
        step = Step(subject, dtype, settings, images, mask)
        counts = step.warm_up()
        return step, dict(name=subject.name, dtype=dtype, **counts, peak_bytes=step.peak_bytes())
    except torch.OutOfMemoryError:
        return None


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def batch_of(settings: Settings) -> tuple[Tensor, Tensor]:
    """Random images (B, 3, H, W) and masks of the published recipe (B, h, w)."""
    torch.manual_seed(0)
    images = torch.randn(settings.batch, 3, settings.img_size, settings.img_size)
    grid = (settings.img_size // PATCH,) * 2
    masks = [torch.from_numpy(random_mask(grid, UNIT // PATCH, RATIO)) for _ in range(settings.batch)]
    return images.to(settings.device), torch.stack(masks).to(settings.device)


def matmul_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of large square matrices, best of ten: what the device can reach."""
    n = 2048 if device == 'cpu' else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if device != 'cpu':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times[2:])


def _speed(row: dict[str, Any], seconds: list[float], batch: int, rates: dict[str, float]) -> dict[str, Any]:
    found = spread(seconds)
    rate = batch / found['seconds']
    share = row['flops_per_image'] * rate / rates[row['dtype']]
    return dict(**found, images_per_second=rate, share_of_matmul=share)
