"""ArviZ, if it is there and of a version that this package is written for."""

from __future__ import annotations

from ...extras import extra

with extra("arviz"):
    import arviz

__all__ = ["arviz"]

if int(arviz.__version__.split(".")[0]) >= 1:
    raise ImportError(
        f"pyro_resflow.interop.arviz is written for ArviZ 0.x, found {arviz.__version__}; ArviZ 1 "
        "has another interface: pip install 'pyro-resflow[arviz]' installs one that fits."
    )
