"""``python -m pyro_resflow.checkpoints``: looks at checkpoints and converts the reference's."""

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
"""Characters of a message that are shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line; default: the process's.

    Returns:
        0, or 1 with a message on the standard error stream.
    """
    options = _parser().parse_args(arguments)
    _show_all()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ContractionWarning)
        warnings.simplefilter("always", NoChecksumWarning)
        try:
            options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:  # of `head`, which has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (CheckpointError, OSError) as error:
            print(f"error: {printable(str(error), MESSAGE)}", file=sys.stderr)
            return 1
    for warning in said:
        print(f"warning: {printable(str(warning.message), MESSAGE)}", file=sys.stderr)
    return 0


def _show_all() -> None:
    """Let the output streams escape what they cannot encode, a name that is no UTF-8 say."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_resflow.checkpoints", description=__doc__
    )
    commands = parser.add_subparsers(required=True)
    convert = commands.add_parser(
        "convert", help="a checkpoint of the reference implementation to one of this package"
    )
    convert.add_argument("source", help="the reference's file, .pth")
    convert.add_argument("target", help="the new file, .safetensors")
    convert.add_argument(
        "--raw", action="store_true", help="the parameters themselves, not their moving average"
    )
    convert.set_defaults(run=_convert)
    shown = commands.add_parser("info", help="what a checkpoint holds")
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
