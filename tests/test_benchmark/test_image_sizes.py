"""tools/measure_image_sizes.py: the table, and a memory limit."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import run
from helpers.paths import ROOT
from helpers.processes import command_of

TOOL = [sys.executable, ROOT / 'tools/measure_image_sizes.py', '--arch', 'small', '--repeats', 1]


@pytest.mark.slow
def test_table_and_limit():
    """Global attention of 24 x 24 tokens needs more memory than windows; a limit stops what exceeds it."""
    ballast = np.ones(2**31, np.uint8)  # of the process that starts the tool: is not counted
    printed = run(*TOOL, '--sizes', 384, '--memory-limit', 2)
    rows = re.findall(r'^\| 384 \| (.+) \| (\d+\.\d\d) \| (\d+\.\d\d) \|$', printed, re.MULTILINE)
    assert [row[0] for row in rows] == ['windows', 'windows, recomputing', 'global', 'global, recomputing']
    memory = [float(row[2]) for row in rows]
    assert 0 < memory[1] < memory[0] and memory[3] < memory[2] and all(float(row[1]) > 0 for row in rows)
    limit = memory[1] / 2
    assert run(*TOOL, '--sizes', 384, '--memory-limit', limit).count(f'| more than {limit:g} GiB |') >= 2
    assert ballast.all()


def test_sizes_are_multiples_of_the_patch():
    assert '--sizes=100 must be a positive multiple of 16, e.g. 96' in run(*TOOL, '--sizes', 100, ok=False)
    assert '--memory-limit=2 needs --device=cpu, got cuda' in run(
        *TOOL, '--memory-limit', 2, '--device', 'cuda', ok=False
    )


@pytest.mark.slow
def test_terminating_the_tool_ends_its_processes():
    """A tool that is terminated leaves no process behind."""
    with subprocess.Popen([str(part) for part in (*TOOL, '--sizes', 1024)]) as tool:
        listed = Path(f'/proc/{tool.pid}/task/{tool.pid}/children')
        for _ in range(600):
            processes = [pid for pid in listed.read_text().split() if 'spawn_main' in command_of(pid)]
            if processes:
                break
            time.sleep(0.1)
        time.sleep(5)  # measuring
        tool.terminate()
        tool.wait(timeout=30)
    assert len(processes) == 1 and not command_of(processes[0])
