"""Run the guide and the model for many draws: a chunk of draws in one run, or one by one.

A chunk is one run inside an extra plate, left of all others. This is correct for models that treat
dimensions on the left as independent, as Pyro's vectorized particles require. To verify this, two
draws of every chunk size run again individually, and every site must agree.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn
from tqdm import tqdm

from ...transforms.core.inside import inside
from .draws import (
    Draws,
    Model,
    Traces,
    exact_densities,
    is_point,
    replayed,
    resampling_observed,
    rows,
)
from .sites import all_sites, batch_shape_of, full_value, is_deterministic, plate_nesting

PLATE = "_pyro_resflow_draws"
"""The name of the plate of the draws; no model uses it."""

ENTRIES = 2**23
"""Total entries of the tensors of a chunk, 32 MB in single precision. Intermediate results, which
cannot be counted from outside, may take a few times as much."""

QUIET_SECONDS = 2.0
"""Seconds before a loop shows a progress bar."""


class Latents(Protocol):
    """The source of the latent values."""

    def one(self, index: int) -> Trace:
        """The values of a single draw."""

    def many(self, draws: range, single: Trace, nesting: int) -> Trace:
        """The values of several draws, along a dimension left of ``nesting`` others."""

    def check(self, latents: Trace, single: Trace, number: int, place: int) -> None:
        """Raise unless one draw of many agrees with an individual run."""


@dataclass(frozen=True)
class GuideLatents:
    """New draws of a guide."""

    guide: Model
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def one(self, index: int) -> Trace:
        return self.traced(self.guide)

    def many(self, draws: range, single: Trace, nesting: int) -> Trace:
        return self.traced(in_plate(self.guide, len(draws), nesting))

    def traced(self, guide: Model) -> Trace:
        """A trace of the guide, without the data of guides that run the model themselves."""
        trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        if isinstance(self.guide, GuideMessenger):
            for site in [*all_sites(trace)]:
                if site["is_observed"]:
                    trace.remove_node(site["name"])
        return trace

    def check(self, latents: Trace, single: Trace, number: int, place: int) -> None:
        values = select_draw(latents, single, number, place)
        for site in all_sites(single):  # point masses are computed, not drawn
            if is_point(site["fn"]):
                values.remove_node(site["name"])
        individual = self.traced(poutine.replay(self.guide, trace=values))
        compare(latents, individual, number, place)


@dataclass(frozen=True)
class Evaluation:
    """A model at latent values.

    Attributes:
        model: the model.
        latents: the source of its latent values.
        args: arguments of the model.
        kwargs: keyword arguments of the model.
        predictive: whether to draw the observed sites as well.
    """

    model: Model
    latents: Latents
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    predictive: bool = True

    @torch.no_grad()
    def draws(
        self,
        number: int,
        single: Traces,
        max_plate_nesting: int | None,
        chunk_size: int | None,
    ) -> Draws:
        """A number of draws, given the traces of a single one.

        Raises:
            ValueError: for a chunk size below 1, or fewer nested plates than the model has.
        """
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}.")
        nesting = checked_nesting(max_plate_nesting, single)
        size = chunk_size if chunk_size is not None else fitting_size(single)
        with exact_densities([single.latents, single.model]):
            return self.chunks_or_loop(number, min(size, number), single, nesting)

    def chunks_or_loop(self, number: int, size: int, single: Traces, nesting: int) -> Draws:
        """Run in chunks if that works; else one by one, with a warning that gives the reason."""
        if size > 1:
            try:
                return self.in_chunks(number, size, single, nesting)
            except Exception as error:  # user code may raise anything
                reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
                warnings.warn(
                    f"model, guide: a run for {size} draws at once failed ({reason[0]}), so that "
                    "they run one by one, which is slow. They vectorize if they run inside an "
                    "additional plate on the left: index from the right (x[..., 0], sum(-1)). "
                    "chunk_size=1 runs one by one without this warning.",
                    stacklevel=5,  # the caller of from_svi and its like
                )
        return self.one_by_one(number)

    @torch.no_grad()
    def one(self, index: int) -> Traces:
        """The run for a single draw."""
        return self.at(self.latents.one(index))

    def at(self, latents: Trace, plate: tuple[int, int] | None = None) -> Traces:
        """The model at latent values, optionally inside a plate of given size and nesting."""
        model = self.model if plate is None else in_plate(self.model, *plate)
        free = resampling_observed(model)
        return Traces(
            latents,
            replayed(model, latents, self.args, self.kwargs),
            replayed(free, latents, self.args, self.kwargs) if self.predictive else None,
        )

    def one_by_one(self, number: int) -> Draws:
        """A run for every draw."""
        parts = []
        for index in tqdm(
            range(number), desc="draws, one by one", delay=QUIET_SECONDS, leave=False
        ):
            traces = self.one(index)
            parts.append(Draws.of(traces, traces, 1))
        return Draws.joined(parts)

    def in_chunks(self, number: int, size: int, single: Traces, nesting: int) -> Draws:
        """One run per chunk; the first of each size is checked against individual runs.

        Raises:
            ValueError: if they differ.
        """
        parts, checked = [], set()
        for start in range(0, number, size):
            chunk = range(start, min(start + size, number))
            latents = self.latents.many(chunk, single.latents, nesting)
            traces = self.at(latents, (len(chunk), nesting))
            parts.append(Draws.of(traces, single, len(chunk)))
            if len(chunk) not in checked:
                checked.add(len(chunk))
                for place in {0, len(chunk) - 1}:
                    self.check(traces, single, len(chunk), place)
        return Draws.joined(parts)

    def check(self, traces: Traces, single: Traces, number: int, place: int) -> None:
        """Raise unless one draw of a chunk agrees with an individual run."""
        self.latents.check(traces.latents, single.latents, number, place)
        latents = select_draw(traces.latents, single.latents, number, place)
        model = replayed(self.model, latents, self.args, self.kwargs)
        compare(traces.model, model, number, place)
        if traces.free is not None and single.free is not None:
            values = select_draw(traces.free, single.free, number, place)
            free = replayed(resampling_observed(self.model), values, self.args, self.kwargs)
            compare(traces.free, free, number, place)


def in_plate(function: Model, size: int, nesting: int) -> Model:
    """A function inside a plate on the left of ``nesting`` others."""

    def inside_plate(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PLATE, size, dim=-nesting - 1):
            return function(*args, **kwargs)

    return inside_plate


def checked_nesting(given: int | None, single: Traces) -> int:
    """The number of nested plates, detected or given.

    Raises:
        ValueError: if the given number is too small.
    """
    found = plate_nesting([single.latents, single.model])
    if given is not None and given < found:
        raise ValueError(
            f"max_plate_nesting: expected at least {found}, the number of dimensions that plates "
            f"and batch shapes take, got {given}."
        )
    return found if given is None else given


def fitting_size(single: Traces) -> int:
    """How many draws fit into :data:`ENTRIES`, by the sites' entries and the flows' weights."""
    entries = 1
    for site in (*all_sites(single.latents), *all_sites(single.model)):
        networks = [part for part in inside(site["fn"]) if isinstance(part, nn.Module)]
        weights = {weight for network in networks for weight in network.parameters()}
        entries += full_value(site).numel() + batch_shape_of(site).numel()
        entries += sum(weight.numel() for weight in weights)
    return max(1, ENTRIES // entries)


def select_draw(trace: Trace, single: Trace, number: int, place: int) -> Trace:
    """The values of one draw, with the shapes of a run of a single draw."""
    chosen = single.copy()
    for site in all_sites(trace):
        node: Any = single.nodes[site["name"]]
        value = rows(site["value"], number, node["value"].shape)[place]
        chosen.nodes[site["name"]] = dict(node, value=value)  # type: ignore[assignment]
    return chosen


def compare(trace: Trace, individual: Trace, number: int, place: int) -> None:
    """Raise if a site of one draw of many differs from the site in an individual run.

    The density of an auxiliary site is not compared: it belongs to the latent vector of an
    autoguide, whose event shape is known, and whose flow may have no inverse.

    Raises:
        ValueError: naming the site.
    """
    for each in (trace, individual):
        each.compute_log_prob(_is_not_auxiliary)
    for site in all_sites(individual):
        together = trace.nodes[site["name"]]
        pairs = [(full_value(together), full_value(site))]
        if "log_prob" in site and not is_deterministic(site):
            pairs.append((together["log_prob"], site["log_prob"]))
        for many, one in pairs:
            if not close(rows(many, number, one.shape)[place], one):
                raise ValueError(f"the site {site['name']!r} differs from that of a single draw")


def _is_not_auxiliary(_: str, site: Any) -> bool:
    return not site["infer"].get("is_auxiliary")


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results agree up to rounding."""
    if not expected.is_floating_point():
        return bool(torch.equal(found, expected))
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
