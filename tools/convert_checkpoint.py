"""`simmim convert` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('convert', 'python tools/convert_checkpoint.py')
