"""`simmim browse` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('browse', 'python tools/visualize_masks.py')
