"""``python -m pyro_resflow.checkpoints``: looks at checkpoints and converts the reference's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import CheckpointError, info, load_reference, save


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line; default: the process's.

    Returns:
        0, or 1 with a message on the standard error stream.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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
    flow = load_reference(options.source, ema=not options.raw)
    notes = {
        "source": f"{Path(options.source).name}, of the reference implementation",
        "parameters": "the training's own" if options.raw else "their moving average",
        "test bits/dim": str(info(options.source).details["test bits/dim"]),
    }
    save(flow, options.target, notes=notes)
    print(f"{options.target}: {sum(p.numel() for p in flow.parameters()):,} parameters")


if __name__ == "__main__":
    sys.exit(main())
