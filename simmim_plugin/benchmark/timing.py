"""Times of several things side by side."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm


def interleaved(
    tasks: Mapping[str, Callable[[], Any]], repeats: int, calls: int = 1, warm: int = 0
) -> dict[str, dict[str, float]]:
    """Time tasks in turns, so that what else the machine does meets all of them.

    Args:
        tasks: By name.
        repeats: Turns; one more comes first and does not count.
        calls: Calls per turn; a turn's time is their mean.
        warm: Calls before those, untimed: for short tasks, so that they find caches and memory as they leave them
            themselves, not as the task before did.

    Returns:
        By name `seconds`, the median of the turns, and `seconds_min` and `seconds_max`.
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
    """Seconds, under names with 'seconds' -> milliseconds, under names with 'ms'."""
    return {name.replace('seconds', 'ms'): 1000 * value for name, value in times.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return dict(seconds=statistics.median(seconds), seconds_min=min(seconds), seconds_max=max(seconds))
