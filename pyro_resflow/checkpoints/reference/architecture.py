"""Build the flow that the options of the reference implementation's training script describe.

The script is ``train_img.py`` of https://github.com/rtqichen/residual-flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...flows import ConvBlock, MLPBlock, ResidualFlow
from ...nn import ELU, Activation, LipSwish, Softplus
from ..errors import UnsupportedFlowError
from ..texts import printable, quoted

ACTIVATIONS: dict[str, type[Activation]] = {"elu": ELU, "softplus": Softplus, "swish": LipSwish}
END_BLOCKS = 4

# Options for which this package supports a single value.
ONLY: dict[str, Any] = {
    "batchnorm": False,
    "block": "resblock",
    "dropout": 0,
    "fc": False,
    "fc_actnorm": False,
    "first_resblock": True,
    "learn_p": False,
    "logit_transform": True,
    "padding": 0,
    "preact": True,
    "quadratic": False,
    "task": "density",
}
FIRST_RELEASE = {"logit_transform": True}
"""Values for files of the script's first release, which lacks these options."""


@dataclass(frozen=True)
class Architecture:
    """The architecture of a flow.

    Args:
        event_shape: ``(C, H, W)``.
        blocks: number of convolutional blocks at each scale.
        hidden_channels: width of the convolutional blocks.
        kernel_sizes: kernel sizes of their convolutions.
        activation: activation of all blocks.
        coefficient: Lipschitz constant of each layer.
        end_blocks: number of fully connected blocks at the end.
        end_hidden_dim: width of the fully connected blocks.
        alpha: margin of the logit.
        squeeze_first: whether the images are squeezed before the first scale.
        factor_out: whether half of the channels are factored out after each scale.
        actnorm: whether there is an ActNorm before the first and after each block.
    """

    event_shape: tuple[int, int, int]
    blocks: tuple[int, ...]
    hidden_channels: int
    kernel_sizes: tuple[int, ...]
    activation: type[Activation]
    coefficient: float
    end_blocks: int
    end_hidden_dim: int
    alpha: float
    squeeze_first: bool
    factor_out: bool
    actnorm: bool

    def build(self) -> ResidualFlow:
        """The untrained flow.

        Raises:
            ValueError: if the architecture is impossible.
        """
        end_widths = (self.end_hidden_dim,) * (len(self.kernel_sizes) - 1)
        return ResidualFlow(
            self.event_shape,
            self.blocks,
            network=ConvBlock(
                self.hidden_channels, self.kernel_sizes, self.activation, self.coefficient
            ),
            end_blocks=self.end_blocks,
            end_network=MLPBlock(end_widths, self.activation, self.coefficient),
            alpha=self.alpha,
            squeeze_first=self.squeeze_first,
            factor_out=self.factor_out,
        )


def architecture(args: Mapping[str, Any]) -> Architecture:
    """The architecture that the options of the training script describe.

    Args:
        args: the options by name.

    Raises:
        UnsupportedFlowError: naming the options that this package does not support.
    """
    args = {**FIRST_RELEASE, **args}
    _check_supported(args)
    try:
        channels = 1 if args["data"] == "mnist" else 3
        size = int(args["imagesize"])
        blocks = tuple(map(int, args["nblocks"].split("-")))
        blocks = blocks[: _possible_scales(size // 2 if args["squeeze_first"] else size)]
        if len(blocks) < 2:  # the reference's first block would begin with an activation
            raise ValueError("flows with fewer than two scales are not supported")
        return Architecture(
            event_shape=(channels, size, size),
            blocks=blocks,
            hidden_channels=int(args["idim"]),
            kernel_sizes=tuple(map(int, args["kernels"].split("-"))),
            activation=ACTIVATIONS[args["act"]],
            coefficient=float(args["coeff"]),
            end_blocks=END_BLOCKS if args["fc_end"] else 0,
            end_hidden_dim=int(args["fc_idim"]),
            alpha=1e-6 if args["data"] == "mnist" else 0.05,
            squeeze_first=bool(args["squeeze_first"]),
            factor_out=bool(args["factor_out"]),
            actnorm=bool(args["actnorm"]),
        )
    except KeyError as error:
        raise UnsupportedFlowError(f"args: the option {error} is missing.") from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise UnsupportedFlowError(
            f"args: an option has an impossible value, {printable(str(error))}."
        ) from error


def _check_supported(args: Mapping[str, Any]) -> None:
    """Raise if the options describe a flow that this package does not support."""
    missing = sorted(ONLY.keys() - args.keys())
    if missing:
        raise UnsupportedFlowError(f"args: the options {', '.join(missing)} are missing.")
    refused = [
        f"{name}={quoted(args[name])} (only {only!r})"
        for name, only in ONLY.items()
        if args[name] != only
    ]
    norms, activation = args.get("vnorms"), args.get("act")
    if not isinstance(norms, str) or set(norms) != {"2"}:
        refused.append(f"vnorms={quoted(norms)} (only the Euclidean norm, '2222')")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        refused.append(f"act={quoted(activation)} (only {', '.join(ACTIVATIONS)})")
    if refused:
        raise UnsupportedFlowError(
            f"args: flows with these options are not supported: {', '.join(refused)}."
        )


def _possible_scales(size: int) -> int:
    """The number of scales until images are smaller than four pixels, as the reference counts."""
    scales = 0
    while size >= 4:
        scales, size = scales + 1, size // 2
    return scales
