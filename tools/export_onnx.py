"""`simmim export` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('export', 'python tools/export_onnx.py')
