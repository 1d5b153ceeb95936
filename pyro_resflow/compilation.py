"""Refuse ``torch.compile`` for flows of contractions, which it makes slower.

Networks can be compiled. A flow cannot: norms, roulettes and caches decide on the host, so that
the compiler splits a step into many graphs, compiles each, and compiles some again at a change.
"""

from __future__ import annotations

from typing import Any

import torch

_EVAL_FRAME: Any = torch._C._dynamo.eval_frame


class CompilationError(RuntimeError):
    """``torch.compile`` was applied to a flow with residual or monotone transforms."""


def is_compiled() -> bool:
    """Whether a compiled function is running, in one of its graphs or between two of them."""
    if torch.compiler.is_compiling():
        return True
    callback = getattr(_EVAL_FRAME, "get_eval_frame_callback", None)  # since torch 2.6
    return callback is not None and callback() not in (None, False)


def refuse_compilation(name: str) -> None:
    """Raise a :class:`CompilationError` that names the transform."""
    raise CompilationError(
        f"{name}: expected a call outside of torch.compile, got one inside. Compiling a flow "
        "takes minutes, and the result is slower than eager code, because norms and "
        "log-determinants decide on the host. Wrap the call in torch.compiler.disable; networks "
        "can be compiled."
    )
