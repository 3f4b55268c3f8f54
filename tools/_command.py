"""What the scripts here share: `simmim` commands of the package next to this folder, which need not be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.cli import run_command

__all__ = ['run_command']
