"""The options of the reference implementation's training script."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_resflow.checkpoints import UnsupportedFlowError
from pyro_resflow.checkpoints.reference.architecture import architecture
from pyro_resflow.nn import ELU, LipSwish, Softplus

# The defaults of the script's first release, which the published files were trained with.
DEFAULTS: dict[str, Any] = {
    "data": "cifar10",
    "imagesize": 32,
    "nbits": 8,
    "block": "resblock",
    "coeff": 0.98,
    "vnorms": "2222",
    "learn_p": False,
    "factor_out": False,
    "act": "swish",
    "idim": 512,
    "nblocks": "16-16-16",
    "squeeze_first": False,
    "actnorm": True,
    "fc_actnorm": False,
    "batchnorm": False,
    "dropout": 0.0,
    "fc": False,
    "kernels": "3-1-3",
    "quadratic": False,
    "fc_end": True,
    "fc_idim": 128,
    "preact": True,
    "padding": 0,
    "first_resblock": True,
    "task": "density",
}

# The commands in its README, and the published numbers of parameters.
PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "mnist": ({"data": "mnist", "imagesize": 28}, 16.6e6),
    "cifar10": ({}, 25.2e6),
    "imagenet32": ({"data": "imagenet32", "nblocks": "32-32-32"}, 47.1e6),
    "imagenet64": (
        {
            "data": "imagenet64",
            "imagesize": 64,
            "nblocks": "32-32-32",
            "factor_out": True,
            "squeeze_first": True,
        },
        53.3e6,
    ),
    "celebahq": (
        {
            "data": "celebahq",
            "imagesize": 256,
            "nbits": 5,
            "act": "elu",
            "n_exact_terms": 8,
            "fc_end": False,
            "factor_out": True,
            "squeeze_first": True,
            "nblocks": "16-16-16-16-16-16",
        },
        136.8e6,
    ),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models(name: str) -> None:
    options, parameters = PUBLISHED[name]
    built = architecture({**DEFAULTS, **options})
    with torch.device("meta"):
        flow = built.build()
    channels, size = (1, 28) if name == "mnist" else (3, options.get("imagesize", 32))
    assert flow.event_shape == (channels, size, size)
    assert built.alpha == (1e-6 if name == "mnist" else 0.05)
    assert sum(p.numel() for p in flow.parameters()) == pytest.approx(parameters, rel=0.005)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batchnorm", True),
        ("block", "coupling"),
        ("dropout", 0.1),
        ("fc", True),
        ("fc_actnorm", True),
        ("first_resblock", False),
        ("learn_p", True),
        ("logit_transform", False),
        ("padding", 1),
        ("preact", False),
        ("quadratic", True),
        ("task", "hybrid"),
        ("task", "classification"),
        ("vnorms", "122f"),
        ("vnorms", "2223"),
        ("act", "lcube"),
        ("act", "relu"),
        ("act", "identity"),
    ],
)
def test_other_flows_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(UnsupportedFlowError, match=rf"args: .*{option}={value!r} \(only"):
        architecture({**DEFAULTS, option: value})


def test_all_reasons_are_named() -> None:
    with pytest.raises(UnsupportedFlowError, match=r"batchnorm=True .*fc=True .*act='relu'"):
        architecture({**DEFAULTS, "fc": True, "batchnorm": True, "act": "relu"})


@pytest.mark.parametrize("option", sorted(set(DEFAULTS) - {"nbits"}))
def test_no_option_that_matters_may_be_missing(option: str) -> None:
    options = {name: value for name, value in DEFAULTS.items() if name != option}
    with pytest.raises(UnsupportedFlowError, match=f"args: .*{option}"):
        architecture(options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nblocks", "16-x"),
        ("nblocks", 16),
        ("imagesize", "big"),
        ("imagesize", float("inf")),
        ("coeff", None),
        ("kernels", ""),
    ],
)
def test_impossible_values_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UnsupportedFlowError, match="args: an option has an impossible value"):
        architecture({**DEFAULTS, option: value})


@pytest.mark.parametrize(
    ("size", "squeeze_first", "scales"),
    [(32, False, 4), (32, True, 3), (16, False, 3), (12, False, 2), (8, False, 2)],
)
def test_scales_end_where_images_get_too_small(
    size: int, squeeze_first: bool, scales: int
) -> None:
    options = {"imagesize": size, "squeeze_first": squeeze_first, "nblocks": "1-2-3-4-5"}
    assert architecture({**DEFAULTS, **options}).blocks == (1, 2, 3, 4, 5)[:scales]


@pytest.mark.parametrize("options", [{"nblocks": "16"}, {"imagesize": 7}, {"imagesize": 2}])
def test_a_single_scale_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFlowError, match="two scales"):
        architecture({**DEFAULTS, **options})


def test_activations() -> None:
    found = [architecture({**DEFAULTS, "act": a}).activation for a in ("swish", "elu", "softplus")]
    assert found == [LipSwish, ELU, Softplus]
