"""Sources of integer images; each has a training and a test portion."""

from examples.images.sources.base import InMemory, Mapped, Portion, Source, hold_out, stacked
from examples.images.sources.bundled import Digits, Mnist5k, PhotoPatches
from examples.images.sources.downloads import Cifar10, FashionMnist, Mnist, Svhn
from examples.images.sources.faces import CelebA, CelebAHQ
from examples.images.sources.folder import Folder
from examples.images.sources.imagenet import ImageNet32, ImageNet64
from examples.images.sources.lsun import Lsun
from examples.images.sources.reduction import Averaged, FewerBits

__all__ = [
    "Averaged",
    "CelebA",
    "CelebAHQ",
    "Cifar10",
    "Digits",
    "FashionMnist",
    "FewerBits",
    "Folder",
    "ImageNet32",
    "ImageNet64",
    "InMemory",
    "Lsun",
    "Mapped",
    "Mnist",
    "Mnist5k",
    "PhotoPatches",
    "Portion",
    "Source",
    "Svhn",
    "hold_out",
    "stacked",
]
