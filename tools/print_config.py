"""`simmim print-config` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('print-config', 'python tools/print_config.py')
