"""``python -m pyro_resflow.checkpoints``: show checkpoints and convert the reference's."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from . import CheckpointError, ContractionWarning, NoChecksumWarning, info, save
from .reference.loading import loaded
from .texts import printable, shown_path

MESSAGE = 2000
"""The largest number of characters of a message that is printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: command-line arguments; default: those of the process.

    Returns:
        0, or 1 with a message on the standard error stream.
    """
    options = _parser().parse_args(arguments)
    _escape_unencodable_output()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ContractionWarning)
        warnings.simplefilter("always", NoChecksumWarning)
        try:
            options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader closed the pipe, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (CheckpointError, OSError) as error:
            print(f"error: {printable(str(error), MESSAGE)}", file=sys.stderr)
            return 1
    for warning in caught:
        print(f"warning: {printable(str(warning.message), MESSAGE)}", file=sys.stderr)
    return 0


def _escape_unencodable_output() -> None:
    """Make the output streams escape characters that they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_resflow.checkpoints", description=__doc__
    )
    commands = parser.add_subparsers(required=True)
    convert = commands.add_parser(
        "convert", help="convert a checkpoint of the reference implementation to this package's"
    )
    convert.add_argument("source", help="the reference's file, .pth")
    convert.add_argument("target", help="the new file, .safetensors")
    convert.add_argument(
        "--raw", action="store_true", help="take the raw parameters, not their moving average"
    )
    convert.set_defaults(run=_convert)
    shown = commands.add_parser("info", help="show the contents of a checkpoint")
    shown.add_argument("file", help="a checkpoint of this package or of the reference")
    shown.set_defaults(run=lambda options: print(info(options.file)))
    return parser


def _convert(options: argparse.Namespace) -> None:
    flow, saved = loaded(options.source, ema=not options.raw)
    notes = {
        "source": f"{shown_path(Path(options.source).name)}, of the reference implementation",
        "parameters": "the training's own" if options.raw else "their moving average",
        "test bits/dim": str(saved.test_bpd),
    }
    save(flow, options.target, notes=notes)
    parameters = sum(parameter.numel() for parameter in flow.parameters())
    print(f"{shown_path(options.target)}: {parameters:,} parameters")


if __name__ == "__main__":
    sys.exit(main())
