"""`simmim transfer` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('transfer', 'python tools/transfer.py')
