"""`simmim test` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('test', 'python tools/test.py')
