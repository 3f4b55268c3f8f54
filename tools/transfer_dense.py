"""`simmim transfer-dense` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('transfer-dense', 'python tools/transfer_dense.py')
