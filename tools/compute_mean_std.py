"""`simmim statistics` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('statistics', 'python tools/compute_mean_std.py')
