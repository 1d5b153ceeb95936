"""Requests to stop a run at the end of a step."""

import signal
import threading
from types import FrameType

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info


class StopRequest:
    """Records Ctrl-C (SIGINT) and, through Lightning, SIGTERM.

    A run that ended in the middle of a step would leave a mixture of old and new weights. A second
    Ctrl-C ends the run at once.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self._handler_before: signal._HANDLER = None

    def listen(self) -> None:
        """Install the handler; only the main thread receives signals."""
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGINT, self._handle)

    def stop_listening(self) -> None:
        """Restore the previous handler."""
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)
            self._handler_before = None

    def signal_number(self, trainer: Trainer) -> int | None:
        """Return the signal that one of the processes received; all processes must call this."""
        interrupted, terminated = (
            trainer.strategy.reduce_boolean_decision(asked, all=False)
            for asked in (self._interrupted, trainer.received_sigterm)
        )
        if interrupted:
            return signal.SIGINT
        return signal.SIGTERM if terminated else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        self.stop_listening()
        rank_zero_info("\nstopping at the end of this step; Ctrl-C again stops at once")
