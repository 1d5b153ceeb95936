"""The error of a run that cannot start."""


class SetupError(ValueError):
    """Something that the run needs is not there; said before the first training step."""
