"""Examples: run them from the root of the repository, as in `python -m examples.images --help`."""
