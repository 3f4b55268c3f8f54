"""`simmim train` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('train', 'python tools/train.py')
