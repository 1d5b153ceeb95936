"""Files of the reference implementation: values, training, old formats, and bad files."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_resflow import checkpoints
from pyro_resflow.checkpoints import (
    CheckpointError,
    ContractionWarning,
    CorruptCheckpointError,
    NoChecksumWarning,
    TensorMismatchError,
    UnsupportedFlowError,
    load_reference,
)
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzLayer
from pyro_resflow.transforms import ActNorm, set_logdet
from tests.checkpoints.forgeries import (
    NAMES,
    forge,
    reference_file,
    reference_values,
    rewrite,
    write_old,
)
from tests.logdet.registry import estimator


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["raw", "ema"])
def parameters(request: pytest.FixtureRequest) -> str:
    return request.param


def check_against_reference(path: Path, name: str, parameters: str) -> None:
    """The latent vector to 1e-5 and the exact log-determinant to 1e-5 relative, in float64."""
    flow = load_reference(path, ema=parameters == "ema").double()
    set_logdet(flow, Exact())
    expected = reference_values(name)
    with torch.no_grad():
        z, ladj = flow.transform.call_and_ladj(expected["x"])
    torch.testing.assert_close(z, expected[f"z_{parameters}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(ladj, expected[f"log_abs_det_{parameters}"], atol=0, rtol=1e-5)


def test_computes_what_the_reference_does(name: str, parameters: str) -> None:
    check_against_reference(reference_file(name), name, parameters)


def test_the_two_sets_of_parameters_differ(name: str) -> None:
    expected = reference_values(name)
    assert (expected["z_raw"] - expected["z_ema"]).abs().max() > 1e-3


def test_the_inverse_in_the_public_interface(name: str, parameters: str) -> None:
    flow = load_reference(reference_file(name), ema=parameters == "ema", dtype=torch.float64)
    expected = reference_values(name)
    z = expected[f"z_{parameters}"]
    with torch.no_grad():
        torch.testing.assert_close(flow.inv(expected["x"]), z, atol=1e-5, rtol=0)
        # and the reference's latent vector is that image's
        torch.testing.assert_close(flow(z), expected["x"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("logdet", ["krylov", "adaptive", "roulette", "roulette published"])
def test_estimators_agree_with_the_exact_value(name: str, logdet: str) -> None:
    flow = load_reference(reference_file(name), dtype=torch.float64)
    set_logdet(flow, estimator(logdet, num_probes=4))
    expected = reference_values(name)
    with torch.no_grad():
        # one roulette for a batch: the draws of several batches are independent, those of one not
        draws = torch.stack([flow.transform.call_and_ladj(expected["x"])[1] for _ in range(25)])
    error = draws.mean(0) - expected["log_abs_det_ema"]
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert (error.abs() < 4 * standard_error).all()


def test_scores_and_samples_images(name: str) -> None:
    flow = load_reference(reference_file(name))
    x = reference_values(name)["x"].float()
    d = flow.distribution()
    assert d.log_prob(x).shape == (4,)
    assert d.sample((2,)).shape == (2, *x.shape[1:])


def test_trains_on(name: str) -> None:
    flow = load_reference(reference_file(name))
    x = reference_values(name)["x"].float()
    before = [
        layer.sigma().item() for layer in flow.modules() if isinstance(layer, LipschitzLayer)
    ]
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -flow.distribution().log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = [layer.sigma().item() for layer in flow.modules() if isinstance(layer, LipschitzLayer)]
    assert before != after  # the norms have been measured anew


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float64])
def test_has_the_type_asked_for(dtype: torch.dtype | None) -> None:
    torch.set_default_dtype(torch.float64)  # which is not that of the file
    try:
        flow = load_reference(reference_file("mnist_tiny"), dtype=dtype, certify=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in flow.parameters()} == {dtype or torch.float32}


def test_draws_no_random_numbers(name: str) -> None:
    state = torch.get_rng_state()
    load_reference(reference_file(name))
    assert torch.equal(torch.get_rng_state(), state)


def test_old_files_with_the_packages_old_name(name: str, parameters: str, tmp_path: Path) -> None:
    with pytest.warns(NoChecksumWarning, match=r"old.pth: the format .* has no checksums"):
        check_against_reference(write_old(tmp_path / "old.pth", name), name, parameters)


def test_files_with_checksums_are_loaded_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_reference(reference_file(name))


def test_files_written_on_a_gpu_under_the_old_name(name: str, tmp_path: Path) -> None:
    def change(data: bytes) -> bytes:
        assert b"cresflows." in data
        moved = data.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
        return moved.replace(b"cresflows.", b"clib.").replace(
            b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
        )

    path = rewrite(reference_file(name), tmp_path / "gpu.pth", change)
    check_against_reference(path, name, "ema")


def test_our_own_file_of_it_computes_the_same(name: str, tmp_path: Path) -> None:
    flow = load_reference(reference_file(name))
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    loaded = checkpoints.load(tmp_path / "flow.safetensors")
    x = reference_values(name)["x"].float()
    with torch.no_grad():
        assert torch.equal(loaded.inv(x), flow.inv(x))


def shorten(saved: dict[str, Any]) -> None:
    del saved["state_dict"]["transforms.0.chain.2.nnet.0.weight"]


def add(saved: dict[str, Any]) -> None:
    saved["state_dict"]["transforms.0.chain.9.weight"] = torch.zeros(3)


def reshape(saved: dict[str, Any]) -> None:
    key = "transforms.0.chain.2.nnet.0.weight"
    saved["state_dict"][key] = saved["state_dict"][key].transpose(0, 1).contiguous()


def rename_average(saved: dict[str, Any]) -> None:
    saved["ema"]["another"] = saved["ema"].pop("transforms.0.chain.2.lamb")


def other_first_batch(saved: dict[str, Any]) -> None:
    saved["state_dict"]["transforms.0.chain.2.nnet.0.u"] = torch.zeros(8)


def not_finite(saved: dict[str, Any]) -> None:
    saved["ema"]["transforms.0.chain.2.nnet.0.weight"][0] = torch.nan


def untrained(saved: dict[str, Any]) -> None:
    saved["state_dict"]["transforms.0.chain.1.initialized"].fill_(0)


def of_integers(saved: dict[str, Any]) -> None:
    key = "transforms.0.chain.2.nnet.0.weight"
    saved["ema"][key] = saved["ema"][key].to(torch.int64)


def larger_than_any_float32(saved: dict[str, Any]) -> None:
    key = "transforms.0.chain.2.nnet.0.weight"
    saved["ema"][key] = saved["ema"][key].double() + 1e300


def without_a_direction(saved: dict[str, Any]) -> None:
    saved["state_dict"]["transforms.0.chain.2.nnet.0.u"].zero_()


def another_name(saved: dict[str, Any]) -> None:
    saved["args"].act = {"elu": 1}


def no_average(saved: dict[str, Any]) -> None:
    saved["ema"] = {}


def no_options(saved: dict[str, Any]) -> None:
    saved["args"] = None


def no_state(saved: dict[str, Any]) -> None:
    del saved["state_dict"]


def no_tensor(saved: dict[str, Any]) -> None:
    saved["state_dict"]["transforms.0.chain.2.lamb"] = "2.0"


def wider(saved: dict[str, Any]) -> None:
    saved["args"].idim = 9


def indivisible(saved: dict[str, Any]) -> None:
    saved["args"].imagesize = 9


FORGERIES: list[tuple[Callable[[dict[str, Any]], None], type[CheckpointError], str]] = [
    (shorten, TensorMismatchError, r"state_dict.*missing 'transforms.0.chain.2.nnet.0.weight'"),
    (add, TensorMismatchError, r"surplus 'transforms.0.chain.9.weight'"),
    (reshape, TensorMismatchError, r"nnet.0.weight' has shape \(1, 8, 3, 3\), expected \(8, 1, "),
    (rename_average, TensorMismatchError, r"shadow_params.*missing .*lamb'; surplus 'another'"),
    (other_first_batch, TensorMismatchError, r"nnet.0.u' has shape \(8,\), expected \(512,\)"),
    (
        not_finite,
        CorruptCheckpointError,
        r"chain.2.nnet.0.weight: expected finite values, got nan",
    ),
    (of_integers, TensorMismatchError, r"nnet.0.weight: expected torch.float32, got torch.int64"),
    (
        larger_than_any_float32,
        CorruptCheckpointError,
        r"its weight is not finite in torch.float32",
    ),
    (without_a_direction, CorruptCheckpointError, r"nnet.0: its u is not finite in torch.float32"),
    (another_name, UnsupportedFlowError, r"act='<builtins.dict>' \(only"),
    (untrained, UnsupportedFlowError, r"transforms.0.chain.1: .* has not seen a batch"),
    (no_average, UnsupportedFlowError, r"got none\. Use ema=False"),
    (no_options, CorruptCheckpointError, r"it has no options 'args'"),
    (no_state, CorruptCheckpointError, r"it has no state_dict"),
    (
        no_tensor,
        CorruptCheckpointError,
        r"state_dict: 'transforms.0.chain.2.lamb' is not a tensor",
    ),
    (wider, TensorMismatchError, r"has shape \(8, .*expected \(9, .*and \d+ more"),
    (indivisible, UnsupportedFlowError, r"args: .*valid flow, got event_shape"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), FORGERIES, ids=lambda x: getattr(x, "__name__", "")
)
def test_forgeries_are_refused(
    change: Callable[[dict[str, Any]], None],
    error: type[CheckpointError],
    message: str,
    tmp_path: Path,
) -> None:
    path = forge(tmp_path / "forged.pth", change)
    with pytest.raises(error, match=message) as info:
        load_reference(path)
    assert str(path) in str(info.value)


def test_a_file_without_changes_is_not_refused(tmp_path: Path) -> None:
    path = forge(tmp_path / "same.pth", lambda saved: None)
    check_against_reference(path, "mnist_tiny", "ema")


def test_a_flow_without_actnorm_is_one_with_identities(tmp_path: Path) -> None:
    def change(saved: dict[str, Any]) -> None:
        saved["args"].actnorm = False
        for tensors in (saved["state_dict"], saved["ema"]):
            renamed = without_actnorm(tensors)
            tensors.clear()
            tensors.update(renamed)

    flow = load_reference(forge(tmp_path / "plain.pth", change), certify=False)
    norms = [module for module in flow.modules() if isinstance(module, ActNorm)]
    assert all(bool(norm.initialized) for norm in norms)
    with_norms = load_reference(reference_file("mnist_tiny"), certify=False)
    for norm in (module for module in with_norms.modules() if isinstance(module, ActNorm)):
        with torch.no_grad():
            norm.log_scale.zero_()
            norm.shift.zero_()
    x = reference_values("mnist_tiny")["x"].float()
    with torch.no_grad():
        assert torch.equal(flow.inv(x), with_norms.inv(x))


def without_actnorm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a flow whose chains have no ActNorms: the places after one move up."""
    renamed = {}
    for scale, first in ((0, 1), (1, 0)):
        places = sorted(
            {int(k.split(".")[3]) for k in tensors if k.startswith(f"transforms.{scale}.")}
        )
        # what has a roulette is a block
        blocks = [p for p in places if f"transforms.{scale}.chain.{p}.lamb" in tensors]
        for new, old in enumerate(blocks, start=first):
            prefix = f"transforms.{scale}.chain.{old}."
            for key in (k for k in tensors if k.startswith(prefix)):
                renamed[key.replace(prefix, f"transforms.{scale}.chain.{new}.")] = tensors[key]
    return renamed


def test_a_moving_average_that_is_no_contraction_is_loaded_with_a_warning(tmp_path: Path) -> None:
    def change(saved: dict[str, Any]) -> None:
        saved["ema"]["transforms.0.chain.2.nnet.0.weight"] += 1.0  # far from u and v

    path = forge(tmp_path / "steep.pth", change)
    with pytest.warns(ContractionWarning, match=r"steep.pth: .*layer .* 'transform.2.0.net.0'"):
        load_reference(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_reference(path, certify=False)
        load_reference(path, ema=False)
        load_reference(reference_file("mnist_tiny"))


def test_options_may_be_a_namespace_of_numpy_numbers(tmp_path: Path) -> None:
    import numpy as np

    def change(saved: dict[str, Any]) -> None:
        saved["test_bpd"] = np.float64(3.0)
        saved["args"] = argparse.Namespace(**vars(saved["args"]), seed=np.int64(3))

    check_against_reference(forge(tmp_path / "numpy.pth", change), "mnist_tiny", "ema")
