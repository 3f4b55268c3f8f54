"""Inspect processes."""

import os
import socket
import sys
from pathlib import Path


def command_of(pid: str) -> str:
    """Command line of a process; empty if there is none."""
    path = Path(f'/proc/{pid}/cmdline')
    return path.read_text() if path.is_file() else ''


def gloo_environment() -> dict[str, str]:
    """One thread per process, and a free port."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'PORT': str(port)}


def children_of(process):
    return [
        int(pid) for task in Path(f'/proc/{process}/task').iterdir() for pid in (task / 'children').read_text().split()
    ]
