"""`simmim image-sizes` without an installation."""

from _command import run_command

if __name__ == '__main__':
    run_command('image-sizes', 'python tools/measure_image_sizes.py')
