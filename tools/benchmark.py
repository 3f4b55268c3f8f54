"""`simmim benchmark` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('benchmark', 'python tools/benchmark.py')
