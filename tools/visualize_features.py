"""`simmim visualize` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('visualize', 'python tools/visualize_features.py')
