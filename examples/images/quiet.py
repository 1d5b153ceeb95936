"""Filters for repeated messages and advertisements of other libraries."""

import logging
import warnings

LOGGERS = (
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
)
OMITTED_MESSAGES = (
    "`weights_only` was not set",  # repeated at every checkpoint
    "💡 Tip:",  # advertises services
)
OMITTED_WARNINGS = (
    r".*LeafSpec.* is deprecated",  # Lightning's use of torch
    r"LightningCLI's args parameter is intended",  # meant for calls from Python
    r"Checkpoint directory .* exists and is not empty",  # as in every resumed run
)


def silence() -> None:
    """Omit the messages and warnings listed here; all others are still shown."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_shown)
    for message in OMITTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _is_shown(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(OMITTED_MESSAGES)
