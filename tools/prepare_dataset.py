"""`simmim prepare` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('prepare', 'python tools/prepare_dataset.py')
