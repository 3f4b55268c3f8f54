"""Locks of folders, between real processes."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys

import pytest

from simmim_plugin.utils.files import lock_folder, unlock_folder

HOLDER = """
import os, sys, time
from simmim_plugin.utils.files import lock_folder
assert lock_folder(sys.argv[1])
child = os.fork()  # like a worker of a data loader, which outlives a parent that is killed
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_a_folder_belongs_to_one_process_until_that_is_killed(tmp_path):
    folder = tmp_path / 'work'
    process = subprocess.Popen([sys.executable, '-c', HOLDER, folder], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    link = tmp_path / 'link'  # another name of the folder
    link.symlink_to(folder)
    for name in (folder, link):
        words = rf'is in use by another training \(process {process.pid} on {platform.node()}\): wait .* --work-dir'
        with pytest.raises(ValueError, match=words):
            lock_folder(name)
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, 0)  # still there
    assert lock_folder(folder) and lock_folder(link)
    os.kill(child, signal.SIGKILL)
    probe = [sys.executable, '-c', HOLDER.split('child', maxsplit=1)[0], folder]
    for locked in (True, False):  # taken twice, released twice
        unlock_folder(folder)
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        assert (f'process {os.getpid()} on' in done.stderr) == locked and (done.returncode != 0) == locked, done.stderr


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / 'mine').write_text('mine')
    (tmp_path / '.lock').symlink_to(tmp_path / 'mine')
    with pytest.raises(OSError, match=r'\.lock'):
        lock_folder(tmp_path)
    assert (tmp_path / 'mine').read_text() == 'mine'


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', fail)
    assert not lock_folder(tmp_path)
