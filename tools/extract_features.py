"""`simmim features` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('features', 'python tools/extract_features.py')
