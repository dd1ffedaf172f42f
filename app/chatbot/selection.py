"""Which models a conversation may choose: what the administrator has selected, or what the provider offers."""

import threading
import time

from chatbot.model import Model, ModelError
from chatbot.settings import Settings

# The provider is asked again after so many seconds, earlier when it did not answer.
KEEP = 300.0
KEEP_FAILURE = 30.0
# Somebody waits for the list: a provider that needs longer (seconds) counts as down.
PATIENCE = 5.0
# Aggregators offer hundreds; more than this nobody reads.
MOST = 1000


class Selection:
    """The configured selection, or what the provider offers; the configured model comes first in both."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._model = model
        self._configured = settings.models
        self._names: list[str] = []
        self._ask_again = 0.0
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The models' names. While the provider does not answer: the last ones known."""
        if self._configured:
            return self._with_default(self._configured)
        with self._lock:
            if time.monotonic() >= self._ask_again:
                try:
                    self._names = [name for name in self._model.offered(PATIENCE) if _usable(name)][:MOST]
                    self._ask_again = time.monotonic() + KEEP
                except ModelError:
                    self._ask_again = time.monotonic() + KEEP_FAILURE
            return self._with_default(self._names)

    def chosen(self, name: str | None) -> str:
        """The model of a conversation that has chosen this one: the default where it is no longer in the selection."""
        if name is None or (self._configured and name not in self._configured):
            return self._model.name
        return name

    def _with_default(self, names: list[str] | tuple[str, ...]) -> list[str]:
        return list(dict.fromkeys([self._model.name, *names]))


def _usable(name: str) -> bool:
    return 0 < len(name) <= 100 and name.isprintable()
