"""Short runs of settings: kinds of parameters, Muon, equal costs, and a narrowed comparison."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import compare
from examples.images.comparison import families, kinds, rates, results
from examples.images.comparison.contenders import Contender
from examples.images.comparison.training import SplitTrainingSet
from examples.images.run_errors import SetupError
from examples.images.sources import Digits, stacked
from pyro_resflow.flows import ConvBlock, ImageFlow, ResidualFlow
from tests.examples.images.test_compare import FewDigits


def tiny(shape: tuple[int, ...], width: int = 2, **options: Any) -> ImageFlow:
    return ResidualFlow(shape, (1,), network=ConvBlock(width), end_blocks=1, **options)


def model(width: int = 2) -> Contender:
    return Contender("", partial(tiny, width=width))


def test_every_parameter_has_one_kind():
    flow = model().build((1, 4, 4), 8)
    found = kinds.by_kind(flow)
    names = {id(parameter): name for name, parameter in flow.named_parameters()}
    ends = {kind: {names[id(p)].rpartition(".")[2] for p in found[kind]} for kind in found}
    assert ends == {
        "weights": {"weight", "bias"},
        "activations": {"raw_beta"},
        "norms": {"log_scale", "shift"},
        "others": set(),
    }
    assert sum(map(len, found.values())) == len(names)


def test_a_kind_has_its_own_rate_and_only_weights_decay():
    optimizer = kinds.AdamByKind(0.1, decay=0.5, factors={"norms": 0.3})(
        model().build((1, 4, 4), 8)
    )
    rates_and_decays = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert rates_and_decays == [(0.1, 0.5), (0.1, 0.0), (pytest.approx(0.03), 0.0)]


def test_a_larger_model_takes_fewer_steps(monkeypatch):
    base = rates.Setting("base", "narrow", model())
    monkeypatch.setattr(rates, "BASE", base)
    setting = rates.Setting("size", "wide", model(width=64), equal_cost=True)
    costs = [rates.operations(each, (1, 4, 4), 8) for each in (base, setting)]
    protocol, _ = setting.protocol((1, 4, 4), 8, 300, seed=0)
    assert 2 * costs[0] < costs[1]
    assert protocol.steps == round(300 * costs[0] / costs[1])


def test_settings_have_names_of_their_own():
    names = [each.name for each in rates.SETTINGS]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").replace("-", "").replace(".", "").isalnum() for name in names)


def test_held_out_images_are_training_images_that_are_not_trained_with():
    data = SplitTrainingSet(FewDigits(), validation_fraction=0.25)
    data.setup()
    held_out = data.scored_images()
    assert len(held_out) == 40
    both = torch.cat([held_out, stacked(data.training_images)]).flatten(1)
    every = stacked(FewDigits().load()[0]).flatten(1)
    assert sorted(both.tolist()) == sorted(every.tolist())


def test_settings_are_compared_and_kept_results_are_not_computed_again(
    tmp_path, capsys, monkeypatch
):
    base = rates.Setting("base", "Adam", model())
    fast = dataclasses.replace(model(), optimizer=kinds.AdamByKind(0.1))
    other = rates.Setting("rate", "0.1", fast)
    monkeypatch.setattr(rates, "SETTINGS", (base, other))
    compare.rates(steps=3, seeds=(0, 1), folder=tmp_path, source=FewDigits())
    monkeypatch.setattr(compare, "train", None)
    compare.rates(steps=3, seeds=(0, 1), folder=tmp_path, source=FewDigits())
    found = results.load_all(tmp_path)
    assert {run.contender for run in found} == {
        f"{name}_3_steps_seed_{seed}" for name in ("base_Adam", "rate_0.1") for seed in (0, 1)
    }
    of = {
        title: sum(run.bits_per_dim for run in found if run.title == title) / 2
        for title in (base.label, other.label)
    }
    change = of[other.label] - of[base.label]
    table = (tmp_path / "table_3_steps.md").read_text()
    assert f"| {of[base.label]:.3f} | +0.000 |\n" in table
    assert f"| {of[other.label]:.3f} | {change:+.3f} |\n" in table
    assert table in capsys.readouterr().out
    with pytest.raises(SetupError, match="it holds runs on FewDigits; name another folder"):
        compare.rates(steps=3, folder=tmp_path, source=Digits())


def test_the_best_rate_of_each_family_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", {"Tiny": model(), "Other": model()})
    monkeypatch.setattr(families, "RATES", (1e-3, 0.1))
    only = ["Tiny_0.001", "Tiny_0.1"]
    compare.families(only=only, steps=3, folder=tmp_path, source=FewDigits())
    slow, fast = (
        results.Result.load(tmp_path / f"{name}_3_steps_seed_0.json").bits_per_dim for name in only
    )
    assert fast < slow
    *_, row = (tmp_path / "table_3_steps.md").read_text().splitlines()
    assert row == f"| Tiny | {slow:.3f} | **{fast:.3f}** |"


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(SetupError, match=r"only \['sgd'\]: no such setting; take some of base"):
        compare.rates(only=["sgd"], folder=tmp_path, source=FewDigits())
    with pytest.raises(SetupError, match="steps 2: expected at least 3"):
        rates.BASE.protocol((1, 4, 4), 8, 2, seed=0)
