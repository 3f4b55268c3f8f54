"""`simmim ablate` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('ablate', 'python tools/ablate.py')
