"""Short terminal output of a training: MMEngine's long dumps go to the log file only."""

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

LOG_FILE_ONLY = (  # beginnings of messages of MMEngine
    '\n-----',  # the environment
    'Config:\n',
    'Hooks will be executed in the following order',
    'Exp name: ',
    'Distributed training is not used',
    '"FileClient" will be deprecated',  # MMEngine's warning about its own code
    '"HardDiskBackend" is the alias',
)


def console_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers of a logger that write to the terminal rather than a file."""
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]


def _short(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LOG_FILE_ONLY)


def shorten(logger: MMLogger) -> MMLogger:
    """Filter environment, config and hook order from the terminal, and log the name of the file that has them."""
    for handler in console_handlers(logger):
        handler.addFilter(_short)
    logger.info(f'Environment, config and hooks are in {logger.log_file}')
    return logger


class ShortLogRunner(Runner):
    """MMEngine's runner with short terminal output; see `shorten`."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; see `shorten`."""
        return shorten(super().build_logger(*args, **kwargs))
