"""Leaves out of what a run prints what other libraries repeat or advertise."""

import logging
import warnings

SPEAKERS = (
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
)
REPEATED = (
    "`weights_only` was not set",  # at every checkpoint
    "💡 Tip:",  # for services that can be bought
)
WARNINGS = (
    r".*LeafSpec.* is deprecated",  # of a use of torch by Lightning
    r"LightningCLI's args parameter is intended",  # for callers from Python
    r"Checkpoint directory .* exists and is not empty",  # so it does when a run is resumed
)


def silence() -> None:
    """Leave out what is listed here; everything else that Lightning says is still said."""
    for name in SPEAKERS:
        logging.getLogger(name).addFilter(_says_something)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(REPEATED)
