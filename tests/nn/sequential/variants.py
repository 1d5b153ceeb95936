"""Plain ``nn.Sequential`` networks that are evaluated in stages, with their event shapes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrizations

VECTOR, IMAGE = (4,), (4, 5, 6)

Variant = tuple[Callable[[], nn.Sequential], tuple[int, ...]]


def around(*activations: nn.Module) -> Callable[[], nn.Sequential]:
    """A perceptron with these activations between its two layers."""
    return lambda: nn.Sequential(nn.Linear(4, 7), *activations, nn.Linear(7, 4))


def images(*layers: nn.Module) -> Callable[[], nn.Sequential]:
    """Layers from 4 channels to 4, after and before an activation."""
    return lambda: nn.Sequential(nn.SiLU(), *layers, nn.Tanh())


def shared() -> nn.Sequential:
    layer, activation = nn.Linear(4, 4), nn.SiLU()
    return nn.Sequential(layer, activation, layer, activation, layer)


def nested() -> nn.Sequential:
    inner = nn.Sequential(nn.SiLU(), nn.Linear(6, 4), nn.Identity())
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(4, 6), inner), nn.Sequential())


def spectral() -> nn.Sequential:
    return nn.Sequential(
        nn.SiLU(),
        parametrizations.spectral_norm(nn.Conv2d(4, 8, 3, padding=1)),
        nn.SiLU(),
        parametrizations.spectral_norm(nn.Conv2d(8, 4, 1)),
    ).eval()


def weight_norm() -> nn.Sequential:
    first = parametrizations.weight_norm(nn.Linear(4, 6))
    return nn.Sequential(first, nn.GELU(), parametrizations.weight_norm(nn.Linear(6, 4)))


def bias_parametrized() -> nn.Sequential:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4), "bias", dim=None), nn.Tanh()
    )


VARIANTS: dict[str, Variant] = {
    "one layer": (lambda: nn.Sequential(nn.Linear(4, 4)), VECTOR),
    "only an activation": (lambda: nn.Sequential(nn.SiLU()), VECTOR),
    "SiLU": (around(nn.SiLU()), VECTOR),
    "ELU": (around(nn.ELU(0.7)), VECTOR),
    "Tanh": (around(nn.Tanh()), VECTOR),
    "Sigmoid": (around(nn.Sigmoid()), VECTOR),
    "Softplus": (around(nn.Softplus(2.0, 0.5)), VECTOR),
    "GELU": (around(nn.GELU()), VECTOR),
    "GELU by tanh": (around(nn.GELU(approximate="tanh")), VECTOR),
    "LeakyReLU": (around(nn.LeakyReLU(0.3)), VECTOR),
    "in place": (around(nn.SiLU(inplace=True), nn.ELU(inplace=True)), VECTOR),
    "two SiLU in a row": (around(nn.SiLU(), nn.SiLU()), VECTOR),
    "two layers in a row": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4)), VECTOR),
    "activations at both ends": (
        lambda: nn.Sequential(nn.SiLU(), nn.SiLU(), nn.Linear(4, 4), nn.SiLU(), nn.SiLU()),
        VECTOR,
    ),
    "without bias": (lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.SiLU()), VECTOR),
    "shared layer": (shared, VECTOR),
    "nested": (nested, VECTOR),
    "weight_norm": (weight_norm, VECTOR),
    "orthogonal": (
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.SiLU()),
        VECTOR,
    ),
    "parametrized bias": (bias_parametrized, VECTOR),
    "linear on rows": (lambda: nn.Sequential(nn.Linear(6, 6), nn.SiLU()), (6, 6)),
    "flat at the start": (
        lambda: nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(4, 4), nn.Flatten()),
        VECTOR,
    ),
    "flat in the middle": (
        lambda: nn.Sequential(
            nn.SiLU(),
            nn.Flatten(),
            nn.SiLU(),
            nn.Linear(8, 5),
            nn.SiLU(),
            nn.Unflatten(1, (5, 1)),
            nn.SiLU(),
            nn.Flatten(1, -1),
            nn.Linear(5, 8),
            nn.Unflatten(1, (2, 2, 2)),
        ),
        (2, 2, 2),
    ),
    "convolution": (
        images(nn.Conv2d(4, 40, 3, padding=1), nn.SiLU(), nn.Conv2d(40, 4, 3, padding=1)),
        IMAGE,
    ),
    "one channel": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 1, 1)),
        (1, 4, 5),
    ),
    "convolution without bias": (images(nn.Conv2d(4, 4, 1, bias=False)), IMAGE),
    "groups": (images(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1)), IMAGE),
    "dilation": (images(nn.Conv2d(4, 4, 3, padding=2, dilation=2)), IMAGE),
    "rectangular kernel": (images(nn.Conv2d(4, 4, (3, 1), padding=(1, 0))), IMAGE),
    "circular": (images(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), IMAGE),
    "reflect": (images(nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect")), IMAGE),
    "replicate": (
        images(nn.Conv2d(4, 4, (3, 5), padding="same", padding_mode="replicate")),
        IMAGE,
    ),
    "same": (images(nn.Conv2d(4, 4, 3, padding="same", dilation=2)), IMAGE),
    "same, even": (images(nn.Conv2d(4, 4, (2, 4), padding="same")), IMAGE),
    "valid": (
        images(nn.Conv2d(4, 5, 3, padding="valid"), nn.SiLU(), nn.ConvTranspose2d(5, 4, 3)),
        IMAGE,
    ),
    "strided": (
        images(
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=(0, 1)),
        ),
        IMAGE,
    ),
    "windows that miss the border": (
        images(
            nn.Conv2d(4, 6, 2, stride=3),
            nn.ConvTranspose2d(6, 4, 2, stride=3, output_padding=(0, 1)),
        ),
        (4, 5, 6),
    ),
    "transposed with groups and dilation": (
        images(nn.ConvTranspose2d(4, 4, 3, padding=2, dilation=2, groups=2)),
        IMAGE,
    ),
    "spectral_norm": (spectral, IMAGE),
}


def build(name: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network in float64 with an event shape."""
    make, event_shape = VARIANTS[name]
    return make().double(), event_shape
