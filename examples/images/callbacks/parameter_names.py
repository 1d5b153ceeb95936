"""Parameters of a model, found by the last part of their name."""

from collections.abc import Sequence

from torch import nn


def parameters_named(module: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters whose last part of the name is one of the given, such as `magnitude`.

    Raises:
        ValueError: If no parameter has one of the names.
    """
    found = dict(module.named_parameters())
    endings = {name: name.rsplit(".")[-1] for name in found}
    missing = set(names) - set(endings.values())
    if missing:
        raise ValueError(f"parameters: the model has none named {', '.join(sorted(missing))}")
    return [found[name] for name, ending in endings.items() if ending in names]
