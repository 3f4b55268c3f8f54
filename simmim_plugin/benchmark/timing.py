"""Interleaved timing of several tasks."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm


def interleaved(
    tasks: Mapping[str, Callable[[], Any]], repeats: int, calls: int = 1, warm: int = 0
) -> dict[str, dict[str, float]]:
    """Time tasks in turns, so that other load on the machine affects all of them.

    Args:
        tasks: Name -> task.
        repeats: Timed turns; an untimed one comes first.
        calls: Calls per turn; the time of a turn is their mean.
        warm: Untimed calls at the start of each turn, so that a short task finds the caches as it leaves them itself,
            not as the task before did.

    Returns:
        Name -> `seconds`, the median of the turns, `seconds_min` and `seconds_max`.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in tqdm(range(repeats + 1), desc='measure', unit='turn'):
        for name, task in tasks.items():
            for _ in range(warm):
                task()
            start = time.perf_counter()
            for _ in range(calls):
                task()
            if turn:
                times[name].append((time.perf_counter() - start) / calls)
    return {name: spread(seconds) for name, seconds in times.items()}


def in_ms(times: Mapping[str, float]) -> dict[str, float]:
    """Convert seconds to milliseconds, with 'seconds' in the names replaced by 'ms'."""
    return {name.replace('seconds', 'ms'): 1000 * value for name, value in times.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return dict(seconds=statistics.median(seconds), seconds_min=min(seconds), seconds_max=max(seconds))
