"""`simmim curves` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('curves', 'python tools/analyze_logs.py')
