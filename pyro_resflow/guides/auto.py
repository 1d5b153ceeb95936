"""A guide over all latent variables of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.utils import _sum_rightmost

from ..arguments import checked
from ..flows import residual_flow
from ..flows.vectors import checked_blocks
from ..logdet import LogDetEstimator
from ..nn import GatedLipschitzMLP
from ..solvers import FixedPointSolver
from ..transforms import ActNorm, Compose, TriangularAffine, set_logdet
from .start import guide_logdet, shrink_last_layers


class AutoResidualFlow(AutoContinuous):
    r"""A joint guide over all latent variables: standard normal noise through a residual flow.

    The latent vector x, the concatenation of all unconstrained latent variables, is

    .. math:: x = b + L\,f(z), \qquad z \sim N(0, I),

    with residual blocks f, which start near the identity, and a learned location b and scale L,
    which start at ``init_loc_fn`` and ``init_scale``. Sampling and scoring the sample need no
    iteration. The guide does not depend on the model's arguments.

    The guide covers latent variables inside a subsampled plate for the whole plate: each step
    draws all of them and passes the model those of its subsample.

    Args:
        model: a Pyro model whose latent variables are continuous and of fixed structure.
        blocks: number of residual blocks.
        hidden_dims: widths of the hidden layers of each block; default ``[64]``.
        init_loc_fn: initial location, see :mod:`pyro.infer.autoguide.initialization`.
        init_scale: initial standard deviation of each unconstrained entry.
        full_rank: whether L is a triangular matrix, with D (D - 1) / 2 parameters for D latent
            dimensions, or diagonal.
        create_plates: function that returns the model's plates, given its arguments, for custom
            subsampling; see :class:`pyro.infer.autoguide.AutoNormal`.
        logdet: estimator for every block, see :mod:`pyro_resflow.logdet`; default
            :func:`guide_logdet`.
        solver: see :class:`pyro_resflow.transforms.Residual`; only scoring points other than the
            guide's own samples uses it.
        network: the class of each block's contraction; default
            :class:`pyro_resflow.nn.GatedLipschitzMLP`. The other choice,
            :class:`pyro_resflow.nn.LipschitzMLP`, made the guides of earlier versions.
        options: further arguments of that class.

    Raises:
        ValueError: for fewer than one block or an ``init_scale`` that is not positive; when
            called, for a model whose latent dimension differs from that of a loaded state.

    Reference:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015; Chen et al.,
        Residual Flows for Invertible Generative Modeling, 2019.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_resflow.guides import AutoResidualFlow
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale).expand([2]).to_event(1))
        >>> guide = AutoResidualFlow(model, blocks=2, hidden_dims=[16])
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        >>> loss = svi.step()
        >>> sorted(guide.median())
        ['scale', 'x']
    """

    num_quantile_draws = 16384
    """Number of draws from which medians and quantiles are computed."""

    @checked(GatedLipschitzMLP, chosen_by="network")
    def __init__(
        self,
        model: Callable[..., Any],
        blocks: int = 3,
        hidden_dims: Sequence[int] | None = None,
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        full_rank: bool = True,
        create_plates: Callable[..., pyro.plate | Iterable[pyro.plate]] | None = None,
        logdet: LogDetEstimator | None = None,
        solver: FixedPointSolver | None = None,
        network: type[nn.Module] = GatedLipschitzMLP,
        **options: Any,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"init_scale: expected a positive number, got {init_scale}.")
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.create_plates = create_plates
        self.blocks = checked_blocks(blocks)
        self.hidden_dims = hidden_dims
        self.init_scale = init_scale
        self.full_rank = full_rank
        self.logdet = logdet
        self.solver = solver
        self.network = network
        self.options = options
        self.transform: Compose | None = None
        self._was_loaded = False

    def get_base_dist(self) -> dist.TorchDistribution:
        """The noise: standard normal of event shape ``(latent_dim,)``."""
        shift = self._affine.shift.detach()
        return dist.Normal(torch.zeros_like(shift), torch.ones_like(shift)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Compose:
        """The flow from noise to the unconstrained latent vector."""
        if self._built is None:
            self._setup_prototype(*args, **kwargs)
        return cast(Compose, self.transform)

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TransformedDistribution:
        """The distribution of the unconstrained latent vector, event shape ``(latent_dim,)``."""
        transform = self.get_transform(*args, **kwargs)
        return dist.TransformedDistribution(self.get_base_dist(), [transform])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A sample of every latent variable, by name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._sync_with_param_store()
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for site, unconstrained in self._unpack_latent(latent):
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[site["name"]]:
                    stack.enter_context(plates[frame.name])
                part = pyro.subsample(unconstrained, event_dim=self._event_dim(site))
                result[site["name"]] = pyro.sample(site["name"], point_mass(site["fn"], part))
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of every entry of every latent variable, by name; see :meth:`quantiles`."""
        return {name: values[0] for name, values in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of every entry of every latent variable, by name.

        They are computed from ``num_quantile_draws`` samples, the same at every call. The standard
        error of a median is about 1 % of the standard deviation. Quantiles of each entry of the
        unconstrained vector are mapped to the support. If the map is elementwise and increasing
        (intervals, positive numbers), the results are the quantiles of the constrained entries. If
        it is decreasing (numbers below a bound), they come in the opposite order. On a simplex or
        another support that couples entries, they are points of the support but not quantiles of
        its entries. Pyro's guides do the same.

        Args:
            quantiles: numbers in [0, 1].
            args: arguments of the model, needed only before the first call.
            kwargs: keyword arguments of the model.

        Returns:
            Shape ``(len(quantiles), *shape)`` for a variable of this shape.

        Raises:
            ValueError: for a number outside [0, 1].
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        shift = self._affine.shift
        generator = torch.Generator(shift.device).manual_seed(0)
        noise = torch.empty(self.num_quantile_draws, self.latent_dim).to(shift)
        draws = self.get_transform()._call(noise.normal_(generator=generator))
        wanted = torch.as_tensor(quantiles, dtype=draws.dtype, device=draws.device)
        if not bool(((wanted >= 0) & (wanted <= 1)).all()):
            raise ValueError(f"quantiles: expected numbers in [0, 1], got {quantiles}.")
        # entry by entry, because torch limits the size of the input of torch.quantile
        latent = torch.stack([torch.quantile(entry, wanted) for entry in draws.unbind(-1)], -1)
        found: dict[str, list[Tensor]] = {}
        for row in latent:
            for site, unconstrained in self._unpack_latent(row):
                value = biject_to(site["fn"].support)(unconstrained)
                found.setdefault(site["name"], []).append(value)
        return {name: torch.stack(values) for name, values in found.items()}

    def set_logdet(self, logdet: LogDetEstimator) -> None:
        """Set the log-determinant estimator of every block, for instance ``Exact()`` for NeuTra.

        Raises:
            ValueError: if the guide has neither been called nor loaded a state.
        """
        set_logdet(self, logdet)

    def __getstate__(self) -> dict[str, Any]:
        model, master = self._model, self.master
        state = dict(super().__getstate__())
        self._model, self.master = model, master  # Pyro removes them from the original too
        return state

    @property
    def _affine(self) -> ActNorm | TriangularAffine:
        """The last transform, with the scale and shift of the posterior."""
        return cast("ActNorm | TriangularAffine", cast(Compose, self._built).parts[-1])

    @property
    def _built(self) -> Compose | None:
        """The transform, if it has been built; reading it here does not register it with Pyro."""
        return cast("Compose | None", self._modules.get("transform"))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for name, site in self._sites():
            self._unconstrained_shapes[name] = self._full_shape(site)
        self.latent_dim = sum(shape.numel() for shape in self._unconstrained_shapes.values())
        if self._built is None:
            self.transform = self._flow(self._init_loc())
        elif self._affine.num_features != self.latent_dim:
            raise ValueError(
                f"model: expected {self._affine.num_features} latent dimensions, as in the loaded "
                f"state, got {self.latent_dim}."
            )

    def _sites(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The latent variables of the model's first run."""
        return cast(Any, self.prototype_trace).iter_stochastic_nodes()

    def _flow(self, init_loc: Tensor) -> Compose:
        """The transform of a latent vector with this initial location, shape ``(D,)``."""
        size = init_loc.shape[0]
        logdet = self.logdet if self.logdet is not None else guide_logdet(size)
        hidden_dims = self.hidden_dims if self.hidden_dims is not None else (64,)
        flow = residual_flow(
            size,
            self.blocks,
            hidden_dims,
            logdet=logdet,
            solver=self.solver,
            network=self.network,
            **self.options,
        )
        shrink_last_layers(flow)
        affine = TriangularAffine(size) if self.full_rank else ActNorm(size, initialized=True)
        with torch.no_grad():
            affine.shift.copy_(init_loc)
            affine.log_scale.fill_(self.init_scale).log_()
        return Compose([flow, affine]).to(init_loc)

    def _full_shape(self, site: dict[str, Any]) -> torch.Size:
        """The shape of an unconstrained value, with subsampled plates at their full size."""
        shape = list(self._unconstrained_shapes[site["name"]])
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                shape[frame.dim - self._event_dim(site)] = frame.full_size
        return torch.Size(shape)

    def _event_dim(self, site: dict[str, Any]) -> int:
        """The number of event dimensions of the unconstrained value."""
        return int(biject_to(site["fn"].support).domain.event_dim)

    def _init_loc(self) -> Tensor:
        parts = []
        for name, site in self._sites():
            value = biject_to(site["fn"].support).inv(site["value"].detach())
            for dim, size in enumerate(self._unconstrained_shapes[name]):
                value = periodic_repeat(value, size, dim - value.dim())
            parts.append(value.reshape(-1))
        return torch.cat(parts)

    def _sync_with_param_store(self) -> None:
        """Copy the values in Pyro's param store to the parameters, as Pyro's guides do.

        After ``load_state_dict``, copy the loaded values to the store instead. The store contains
        no buffers; a guide's buffers follow from its parameters.
        """
        if pyro.settings.get("module_local_params"):
            return
        store = pyro.get_param_store()
        prefix = self._pyro_get_fullname("transform")
        for path, parameter in cast(nn.Module, self._built).named_parameters():
            name = f"{prefix}$$${path}"
            if not parameter.requires_grad or name not in store or store[name] is parameter:
                continue  # frozen parameters are not registered
            if not self._was_loaded:
                self._copy_stored(name, parameter, store[name])
            store[name] = parameter
        self._was_loaded = False

    def _copy_stored(self, name: str, parameter: Tensor, stored: Tensor) -> None:
        if stored.shape != parameter.shape:
            raise ValueError(
                f"{name}: expected shape {tuple(parameter.shape)} in the param store, got "
                f"{tuple(stored.shape)}, which belongs to another guide. Call "
                "pyro.clear_param_store() first."
            )
        with torch.no_grad():
            parameter.copy_(stored)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        start, end = f"{prefix}transform.", ".shift"
        shifts = [state_dict[k] for k in state_dict if k.startswith(start) and k.endswith(end)]
        if self._built is None and shifts:
            self.transform = self._flow(torch.zeros_like(shifts[-1]))
        self._was_loaded = bool(shifts)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def point_mass(fn: dist.TorchDistribution, unconstrained: Tensor) -> dist.Delta:
    """A point mass in the support of ``fn``, with the log-density of the unconstrained value.

    Args:
        fn: the distribution of the site in the model.
        unconstrained: the unconstrained value, with the site's batch and event dimensions.
    """
    transform = biject_to(fn.support)
    value = transform(unconstrained)
    log_density: Tensor | float = 0.0
    if poutine.get_mask() is not False:
        entries = -transform.log_abs_det_jacobian(unconstrained, value)
        log_density = _sum_rightmost(entries, entries.dim() - value.dim() + fn.event_dim)
    return dist.Delta(value, log_density=log_density, event_dim=fn.event_dim)
