"""What a terminal shows of a training: MMEngine's long dumps go into the log file alone."""

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

LOG_FILE_ONLY = (  # how messages of MMEngine begin
    '\n-----',  # the environment
    'Config:\n',
    'Hooks will be executed in the following order',
    'Exp name: ',
    'Distributed training is not used',
    '"FileClient" will be deprecated',  # MMEngine about what it does itself
    '"HardDiskBackend" is the alias',
)


def console_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """Those of a logger's handlers that write to the terminal, not into a file."""
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]


def _short(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LOG_FILE_ONLY)


def shorten(logger: MMLogger) -> MMLogger:
    """Keep environment, config and order of the hooks off the terminal, and say where they are."""
    for handler in console_handlers(logger):
        handler.addFilter(_short)
    logger.info(f'Environment, config and hooks are in {logger.log_file}')
    return logger


class ShortLogRunner(Runner):
    """MMEngine's runner, with a short terminal."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; see `shorten`."""
        return shorten(super().build_logger(*args, **kwargs))
