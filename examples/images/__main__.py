"""Entry point of `python -m examples.images`."""

from examples.images.cli import main

main()
