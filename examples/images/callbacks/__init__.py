"""The Lightning callbacks of the image examples."""

from examples.images.callbacks.averaging import WeightAverage
from examples.images.callbacks.folder_claim import FolderClaim
from examples.images.callbacks.freezing import FrozenAtFirst
from examples.images.callbacks.monitoring import Monitoring
from examples.images.callbacks.penalty import SquaredPenalty
from examples.images.callbacks.progress import RunProgress
from examples.images.callbacks.randomness import RandomStreams
from examples.images.callbacks.record import RunRecord
from examples.images.callbacks.report import Report
from examples.images.callbacks.safekeeping import Safekeeping
from examples.images.callbacks.stability import SkipNonFinite

__all__ = [
    "FolderClaim",
    "FrozenAtFirst",
    "Monitoring",
    "RandomStreams",
    "Report",
    "RunProgress",
    "RunRecord",
    "Safekeeping",
    "SkipNonFinite",
    "SquaredPenalty",
    "WeightAverage",
]
