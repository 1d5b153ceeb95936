"""torch's linear layers as the layers of affine stages."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from ..lipschitz.convolution import convolve
from ..lipschitz.operators import ConvolutionOperator, MatrixOperator
from ..stages import Affine, AffineLayer, AffineSaved, Products, Stage, scaled
from .convolutions import Geometry, Pair, StridedConvolution, TransposedConvolution
from .reshaping import Pad


class ModuleLayer:
    """The weight and the bias of a module, which may be parametrized.

    Args:
        module: the module.
    """

    is_dense = False

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    @property
    def bias(self) -> Tensor | None:
        """The constant that is added, if there is one."""
        bias: Tensor | None = self.module.bias
        return bias

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight, times a gain."""
        return scaled(self.module.weight, gain)


class Dense(ModuleLayer):
    """``nn.Linear``."""

    is_dense = True

    def operator(self, weight: Tensor) -> MatrixOperator:
        """The product with the weight."""
        return MatrixOperator(weight)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer at x."""
        return F.linear(x, weight, bias)


class ImageLayer(ModuleLayer):
    """A layer of images, whose linear map depends on their size."""

    def operator_at(self, x: Tensor, weight: Tensor) -> Products:
        """The linear map on images of the size of x."""
        raise NotImplementedError

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer at x."""
        raise NotImplementedError


class SameSize(ImageLayer):
    """``nn.Conv2d`` of stride 1 that keeps the size of images, with a square kernel."""

    def operator_at(self, x: Tensor, weight: Tensor) -> Products:
        return ConvolutionOperator(weight, (x.shape[-2], x.shape[-1]))

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return convolve(x, weight, bias)


class Strided(ImageLayer):
    """Any other ``nn.Conv2d``.

    Args:
        module: the module.
        geometry: its settings.
    """

    def __init__(self, module: nn.Module, geometry: Geometry) -> None:
        super().__init__(module)
        self.geometry = geometry

    def operator_at(self, x: Tensor, weight: Tensor) -> Products:
        return StridedConvolution(weight, self.geometry, x.shape[-2:])

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.geometry.convolve(x, weight, bias)


class Transposed(ImageLayer):
    """``nn.ConvTranspose2d``.

    Args:
        module: the module.
        geometry: its settings.
        output_padding: its output padding.
    """

    def __init__(self, module: nn.Module, geometry: Geometry, output_padding: Pair) -> None:
        super().__init__(module)
        self.geometry = geometry
        self.output_padding = output_padding

    def operator_at(self, x: Tensor, weight: Tensor) -> Products:
        return TransposedConvolution(weight, self.geometry, self.output_padding)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.geometry.transposed(x, weight, self.output_padding, bias)


class AffineOnImages(Affine):
    """An affine stage whose linear map depends on the size of the images.

    Args:
        layer: the layer that holds the weight.
    """

    layer: ImageLayer  # type: ignore[assignment]

    def __init__(self, layer: ImageLayer) -> None:
        super().__init__(cast(AffineLayer, layer))

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, AffineSaved]:
        operator = self.layer.operator_at(x, coefficients[0])
        return self.layer.affine(x, *coefficients), AffineSaved(x, operator)


def linear(module: Any) -> list[Stage[Any]]:
    """The stages of ``nn.Linear``."""
    return [Affine(Dense(module))]


def convolution(module: Any) -> list[Stage[Any]]:
    """The stages of ``nn.Conv2d``: its map, after a stage that pads if zeros do not suffice."""
    kernel, dilation = _kernel_size(module), _pair(module.dilation)
    pad, padding = _padding(module, kernel, dilation)
    stride, groups = _pair(module.stride), module.groups
    if _keeps_size(kernel, stride, padding, dilation) and groups == 1:
        return [*pad, AffineOnImages(SameSize(module))]
    return [*pad, AffineOnImages(Strided(module, Geometry(stride, padding, dilation, groups)))]


def _kernel_size(module: Any) -> Pair:
    """Height and width of the kernel, of the weight itself if that is not parametrized."""
    weight = module._parameters.get("weight")
    return _pair(module.kernel_size) if weight is None else tuple(weight.shape[2:])


def _padding(module: Any, kernel: Pair, dilation: Pair) -> tuple[list[Stage[Any]], Pair]:
    """The stage that pads, if one is needed, and the symmetric padding with zeros that is left."""
    if module.padding_mode != "zeros":
        return [Pad(module._reversed_padding_repeated_twice, module.padding_mode)], (0, 0)
    if module.padding == "valid":
        return [], (0, 0)
    if module.padding != "same":
        return [], _pair(module.padding)
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if height % 2 == 0 and width % 2 == 0:
        return [], (height // 2, width // 2)
    sides = [width // 2, width - width // 2, height // 2, height - height // 2]
    return [Pad(sides, "zeros")], (0, 0)


def _keeps_size(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Whether :func:`convolve` computes the convolution, as far as these settings say."""
    height, width = kernel
    half = height // 2
    is_odd_square = height == width and height % 2 == 1
    return is_odd_square and stride == dilation == (1, 1) and padding == (half, half)


def transposed_convolution(module: Any) -> list[Stage[Any]] | str:
    """The stages of ``nn.ConvTranspose2d``, or why it has none."""
    stride, extra = _pair(module.stride), _pair(module.output_padding)
    if module.padding_mode != "zeros":
        return "its padding_mode is not 'zeros'"
    if extra[0] >= stride[0] or extra[1] >= stride[1]:
        return "its output_padding is not below its stride"
    geometry = Geometry(stride, _pair(module.padding), _pair(module.dilation), module.groups)
    return [AffineOnImages(Transposed(module, geometry, extra))]
