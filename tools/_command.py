"""Shared by these scripts: run a `simmim` command of the package next to this folder, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.cli import run_command

__all__ = ['run_command']
