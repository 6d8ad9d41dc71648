"""Makes the report anew from time to time while a run goes on."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from pipeline.errors import UserError
from pipeline.store import Store

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 20.0
MOST_OF_A_CORE = 0.02
"Share of one core that pages may take from training; pages of a large run are then written less often."


class LivePage:
    """A context in which a run's report is written every twenty seconds, by a thread that waits.

    A page that took long to write is followed by a longer pause. A run that ends sooner costs
    nothing. A page that cannot be written is named once.
    """

    def __init__(self, store: Store, name: str, *, refresh_seconds: float = REFRESH_SECONDS) -> None:
        self._store = store
        self._name = name
        self._refresh_seconds = refresh_seconds
        self._ended = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._refresh, daemon=True, name="live report")

    def __enter__(self) -> LivePage:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Write no more pages; one that is being written is waited for."""
        self._ended.set()
        self._thread.join()

    def _refresh(self) -> None:
        pause = self._refresh_seconds
        while not self._ended.wait(pause):
            # Imported when a page is due: a short run needs no template engine here.
            from pipeline.report.write import write_report

            began = time.thread_time()
            try:
                write_report(self._store, self._name, live=True)
            except (UserError, OSError) as problem:
                if not self._complained:
                    logger.warning("the live report is not written: %s", problem)
                self._complained = True
            pause = pause_after(time.thread_time() - began, least=self._refresh_seconds)


def pause_after(seconds: float, *, least: float) -> float:
    """Return how long to wait after a page that took so many seconds of CPU."""
    return max(least, seconds / MOST_OF_A_CORE)
