"""Sender: hands things to a store from a thread of its own, so that a store that is slow or away delays nobody."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from scripts.training.description import without_credentials

logger = logging.getLogger(__name__)


class Sender:
    """Calls ``send`` with all that was given and not sent yet; what fails is kept and sent with the next attempt.

    Args:
        send: takes a list, and removes from its front what the store has taken; may raise anything.
        name: of the store, for messages.
        pause: seconds between an attempt that failed and the next.
    """

    def __init__(self, send: Callable[[list[Any]], None], *, name: str, pause: float = 30) -> None:
        self.send = send
        self.name = name
        self.pause = pause
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closing = threading.Event()
        self.lost = 0
        self.thread = threading.Thread(target=self._work, name=f"sender to {name}", daemon=True)

    def give(self, thing: Any) -> None:
        """Returns at once; the thread starts with the first thing."""
        self.waiting.put(thing)
        if self.thread.ident is None:
            self.thread.start()

    def close(self, timeout: float) -> None:
        """Waits until everything is sent, an attempt from now on has failed, or ``timeout`` seconds have passed."""
        self.closing.set()
        if self.thread.ident is None:
            return
        self.waiting.put(None)
        self.thread.join(timeout)
        if self.thread.is_alive() or self.lost:
            logger.warning("%s did not take everything; training_log.csv has it.", self.name)

    def _work(self) -> None:
        unsent: list[Any] = []
        away = False
        while True:
            if not unsent:
                unsent.append(self.waiting.get())
            while not self.waiting.empty():
                unsent.append(self.waiting.get())
            last = None in unsent  # put behind everything else by close
            unsent[:] = [thing for thing in unsent if thing is not None]
            try:
                if unsent:
                    self.send(unsent)
            except Exception as error:
                if not away:
                    logger.warning("%s failed: %s. Training goes on; it is tried again.", self.name, _line(error))
                away = True
                if last:
                    self.lost = len(unsent)
                    return
                self.closing.wait(self.pause)
            else:
                if away:
                    logger.warning("%s answers again.", self.name)
                away = False
                if last:
                    return


def _line(error: BaseException) -> str:
    return without_credentials(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
