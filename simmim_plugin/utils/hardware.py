"""Query CPU, GPU and memory of this machine."""

import os
import platform
from pathlib import Path

import torch


def default_workers(processes: int | None = None) -> int:
    """Default number of data loader workers: one per CPU core of this rank.

    The cores are Slurm's per task, or those available on the machine divided by torchrun's ranks. At most 16 workers;
    without a GPU at most 2, as the training itself needs the cores.

    Args:
        processes: Number of processes that share the cores; None: torchrun's ranks on this machine.
    """
    if 'SLURM_CPUS_PER_TASK' in os.environ:
        cores = int(os.environ['SLURM_CPUS_PER_TASK'])
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        cores //= processes or int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    return max(1, min(cores, 16 if torch.cuda.is_available() else 2))


def hardware() -> str:
    """Names of GPU and CPU, number of cores, and version of PyTorch."""
    name = platform.processor() or platform.machine()  # codespell:ignore processor
    cpu = Path('/proc/cpuinfo')
    if cpu.is_file():
        names = [line.split(':')[1].strip() for line in cpu.read_text().splitlines() if line.startswith('model name')]
        name = names[0] if names else name
    if torch.cuda.is_available():
        name = f'{torch.cuda.get_device_name()}, {name}'
    return f'{name}, {os.cpu_count()} cores, PyTorch {torch.__version__}'


def free_memory() -> float:
    """Free bytes on the GPU, or without one the memory that is available to this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    table = Path('/proc/meminfo')
    if table.is_file():  # includes the page cache
        free = 1024.0 * int(next(line.split()[1] for line in table.read_text().splitlines() if 'MemAvailable' in line))
    else:
        free = float(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')) / 2
    limit, used = Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory.current')
    if limit.is_file() and used.is_file() and limit.read_text().strip() != 'max':  # a container
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 matrix products (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def checked_device(device: str) -> str:
    """Return the name of a device, or raise ValueError if it cannot be used."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # PyTorch's, for devices that are missing or none
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'--device {device} cannot be used ({reason}); use cpu, or cuda on a machine with a GPU'
        ) from error
    return device
