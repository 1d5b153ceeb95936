"""Ctrl-C, heard at once and answered at the end of a step."""

import signal
import threading
from types import FrameType

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info


class StopRequest:
    """Notes Ctrl-C (SIGINT) and, through Lightning, SIGTERM; a second Ctrl-C ends the run at once.

    Ended in the middle of a step, a run would leave weights that are half old, half new.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self._handler_before: signal._HANDLER = None

    def listen(self) -> None:
        """Begin to listen, where signals arrive: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGINT, self._note)

    def listen_no_longer(self) -> None:
        """Let signals do what they did before."""
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)
            self._handler_before = None

    def signal_number(self, trainer: Trainer) -> int | None:
        """Return the signal that asked one of the processes to stop; all processes must ask."""
        interrupted, terminated = (
            trainer.strategy.reduce_boolean_decision(asked, all=False)
            for asked in (self._interrupted, trainer.received_sigterm)
        )
        if interrupted:
            return signal.SIGINT
        return signal.SIGTERM if terminated else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        self.listen_no_longer()
        rank_zero_info("\nstopping at the end of this step; Ctrl-C again stops at once")
