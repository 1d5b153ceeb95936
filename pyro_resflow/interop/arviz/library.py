"""Interface to the installed version of ArviZ, 0.x or 1.

Everything else in this package is independent of the version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyro

from ...extras import extra

with extra("arviz"):
    import arviz

az: Any = arviz  # its versions have different attributes

Container = Any
"""``arviz.InferenceData`` in ArviZ 0.x, ``xarray.DataTree`` in ArviZ 1."""

SAMPLE_DIMS = ("chain", "draw")
"""ArviZ's names of the dimensions of the draws."""


class Library(Protocol):
    """The functions that differ between the versions."""

    def dataset(
        self,
        values: Mapping[str, np.ndarray],
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Sequence[Any]],
        sample_dims: Sequence[str],
    ) -> Any:
        """An ``xarray.Dataset`` with ArviZ's attributes; ``sample_dims`` are the first ones."""

    def container(self, groups: Mapping[str, Any]) -> Container:
        """A container of datasets, by the names of their groups."""

    def elpd(
        self,
        *,
        total: float,
        error: float,
        parameters: float,
        draws: int,
        pointwise: Any,
        pareto_k: Any,
        good_k: float,
        weighted: bool,
    ) -> Any:
        """An ``arviz.ELPDData`` of leave-one-out cross-validation."""


class ClassicArviZ:
    """ArviZ 0.x."""

    def dataset(
        self,
        values: Mapping[str, np.ndarray],
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Sequence[Any]],
        sample_dims: Sequence[str],
    ) -> Any:
        return az.dict_to_dataset(
            dict(values),
            library=pyro,
            dims=dict(dims),
            coords=dict(coords),
            default_dims=list(sample_dims),
        )

    def container(self, groups: Mapping[str, Any]) -> Container:
        return az.InferenceData(**groups)

    def elpd(
        self,
        *,
        total: float,
        error: float,
        parameters: float,
        draws: int,
        pointwise: Any,
        pareto_k: Any,
        good_k: float,
        weighted: bool,
    ) -> Any:
        entries = {
            "elpd_loo": total,
            "se": error,
            "p_loo": parameters,
            "n_samples": draws,
            "n_data_points": pointwise.size,
            "warning": bool((pareto_k > good_k).any()),
            "loo_i": pointwise.rename("loo_i"),
            "pareto_k": pareto_k.rename("pareto_shape"),
            "scale": "log",
            "good_k": good_k,
        }
        return az.ELPDData(data=list(entries.values()), index=list(entries))


class ModernArviZ:
    """ArviZ 1."""

    def dataset(
        self,
        values: Mapping[str, np.ndarray],
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Sequence[Any]],
        sample_dims: Sequence[str],
    ) -> Any:
        return az.dict_to_dataset(
            dict(values),
            inference_library=pyro,
            dims={name: list(each) for name, each in dims.items()},
            coords=dict(coords),
            sample_dims=list(sample_dims),
        )

    def container(self, groups: Mapping[str, Any]) -> Container:
        import xarray

        return xarray.DataTree.from_dict(dict(groups))

    def elpd(
        self,
        *,
        total: float,
        error: float,
        parameters: float,
        draws: int,
        pointwise: Any,
        pareto_k: Any,
        good_k: float,
        weighted: bool,
    ) -> Any:
        # since 1.3 each kind has a class; before, one class has the kind as a field
        named = getattr(az, "ELPDDataLOO", None)
        make = named if named is not None else lambda **fields: az.ELPDData("loo", **fields)
        return make(
            elpd=total,
            se=error,
            p=parameters,
            n_samples=draws,
            n_data_points=pointwise.size,
            scale="log",
            warning=bool((pareto_k > good_k).any()),
            good_k=good_k,
            elpd_i=pointwise,
            pareto_k=pareto_k,
            approx_posterior=weighted,
        )


LIBRARY: Library = ClassicArviZ() if int(az.__version__.split(".")[0]) < 1 else ModernArviZ()
"""The installed version."""


def group_of(data: Container, name: str) -> Any:
    """A group of a container; an empty mapping if the group does not exist."""
    try:
        return data[name]
    except KeyError:
        return {}
