"""The automatic guide saved, loaded, copied and frozen."""

import copy
import pickle
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import Tensor, nn

from pyro_resflow.guides import (
    AutoResidualFlow,
)
from tests.guides.cases import hierarchical, perturbed, small, train


def same_function(first: AutoResidualFlow, second: AutoResidualFlow) -> bool:
    noise = torch.randn(7, first.get_transform().parts[-1].num_features)
    return torch.equal(first.get_transform()._call(noise), second.get_transform()._call(noise))


def test_state_dict_loads_into_a_fresh_guide_before_its_first_call(dtype: torch.dtype) -> None:
    trained = perturbed(small(hierarchical))
    pyro.clear_param_store()
    fresh = small(hierarchical)
    assert str(fresh.load_state_dict(trained.state_dict())) == "<All keys matched successfully>"
    assert same_function(fresh, trained)
    before = fresh.median()
    fresh()
    assert same_function(fresh, trained)
    for name, value in trained.median().items():
        assert torch.equal(before[name], value)


def test_loaded_state_prevails_over_what_the_param_store_holds() -> None:
    guide = perturbed(small(hierarchical))
    state = copy.deepcopy(guide.state_dict())
    train(hierarchical, guide)
    fresh = small(hierarchical)
    fresh.load_state_dict(state)
    fresh()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name])


def test_state_dict_of_a_module_around_the_guide() -> None:
    trained = nn.ModuleDict({"guide": perturbed(small(hierarchical))})
    fresh = nn.ModuleDict({"guide": small(hierarchical)})
    fresh.load_state_dict(trained.state_dict())
    assert same_function(fresh["guide"], trained["guide"])


def test_state_of_another_shape_is_refused() -> None:
    trained = perturbed(small(hierarchical))
    pyro.clear_param_store()
    other = small(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    other.load_state_dict(trained.state_dict())
    with pytest.raises(ValueError, match=r"expected 9 latent dimensions.*got 1\."):
        other()
    with pytest.raises(RuntimeError, match="Missing key"):
        AutoResidualFlow(hierarchical, blocks=3, hidden_dims=[8]).load_state_dict(
            trained.state_dict()
        )


def test_param_store_holds_every_parameter() -> None:
    guide = small(hierarchical)
    guide()
    store = pyro.get_param_store()
    for name, parameter in guide.named_parameters():
        path = name.removeprefix("transform.")
        assert store[f"AutoResidualFlow.transform$$${path}"] is parameter


def test_cleared_param_store_takes_the_guide_again() -> None:
    guide = small(hierarchical)
    train(hierarchical, guide)
    before = copy.deepcopy(guide.state_dict())
    pyro.clear_param_store()
    guide()
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name])
    train(hierarchical, guide)
    assert not same_function(guide, loaded_from(before))


def loaded_from(state: dict[str, Tensor]) -> AutoResidualFlow:
    guide = small(hierarchical)
    guide.load_state_dict(state)
    return guide


def test_param_store_reloads_a_fresh_guide_whole(tmp_path: Path) -> None:
    guide = small(hierarchical)
    train(hierarchical, guide, steps=10, lr=0.1)
    pyro.get_param_store().save(tmp_path / "params.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params.pt")
    fresh = small(hierarchical)
    fresh()
    noise = torch.randn(7, 9)
    # the vectors of the layers' norms are no parameters: a fresh guide measures its norms anew
    torch.testing.assert_close(
        fresh.transform._call(noise), guide.transform._call(noise), rtol=0, atol=1e-3
    )
    losses = train(hierarchical, fresh)
    assert torch.tensor(losses).isfinite().all()
    assert not torch.equal(fresh.transform._call(noise), guide.transform._call(noise))


def test_param_store_of_another_guide_is_refused() -> None:
    small(hierarchical)()
    other = AutoResidualFlow(hierarchical, blocks=2, hidden_dims=[16])
    with pytest.raises(ValueError, match="clear_param_store"):
        other()


def test_copies_compute_the_same_and_leave_the_original_its_model() -> None:
    guide = perturbed(small(hierarchical))
    duplicate = copy.deepcopy(guide)
    assert same_function(guide, duplicate)
    assert guide.model is not None
    assert set(duplicate()) == set(guide())


def test_pickle_round_trip() -> None:
    guide = perturbed(small(top_level))
    assert same_function(pickle.loads(pickle.dumps(guide)), guide)


def top_level() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_frozen_guide_stays_while_the_model_trains() -> None:
    def model() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))

    guide = small(model)
    guide()
    guide.requires_grad_(False).eval()
    before = copy.deepcopy(guide.state_dict())
    train(model, guide)
    assert pyro.param("loc") != 0
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert not any(parameter.requires_grad for parameter in guide.parameters())


def test_loaded_and_frozen_guide_stays_so_whatever_the_param_store_holds() -> None:
    trained = perturbed(small(hierarchical))
    state = copy.deepcopy(trained.state_dict())
    train(hierarchical, trained)
    frozen = loaded_from(state).requires_grad_(False).eval()
    frozen()
    assert all(torch.equal(value, state[name]) for name, value in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_one_of_a_list_of_guides() -> None:
    guide = AutoGuideList(hierarchical)
    guide.append(small(poutine.block(hierarchical, hide=["pair"])))
    guide.append(AutoNormal(poutine.block(hierarchical, expose=["pair"])))
    losses = train(hierarchical, guide, num_particles=2)
    assert torch.tensor(losses).isfinite().all()
    assert set(guide()) == {"scale", "weights", "local", "pair"}
