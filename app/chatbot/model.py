"""Access to the model: the only module that knows the openai library."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import urlsplit

import httpx2
import openai

from chatbot.settings import Settings

log = logging.getLogger(__name__)

CONNECT_ATTEMPTS = 3
RETRY_PAUSE = 0.5  # seconds before the second attempt, twice that before the third


class Turn(TypedDict):
    """One message as the chat-completions API wants it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: text (may be empty), and towards the end why it ended and what it used."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ModelError(Exception):
    """The model gave no (whole) answer. The message is for the reader and holds nothing of the provider's text."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after = retry_after


class Model:
    """A model behind an OpenAI-compatible API."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.model_name
        self._client = openai.OpenAI(
            base_url=settings.model_base_url,
            api_key=settings.model_api_key.get_secret_value(),
            timeout=httpx2.Timeout(settings.model_timeout, connect=5, pool=5),
            # The library would sleep for as long as the provider asks; a reader wants to know at once.
            max_retries=0,
        )
        # OpenAI's newer models refuse the old name, other servers may not know the new one.
        limit = (
            "max_completion_tokens" if urlsplit(settings.model_base_url).hostname == "api.openai.com" else "max_tokens"
        )
        self._parameters: dict[str, Any] = {
            "model": settings.model_name,
            "stream": True,
            "stream_options": {"include_usage": True},
            limit: settings.model_max_tokens,
        }
        if settings.model_temperature is not None:
            self._parameters["temperature"] = settings.model_temperature

    @contextmanager
    def answer(self, turns: list[Turn]) -> Iterator[Iterator[Chunk]]:
        """Ask, and give the answer's pieces as they come; entered when the model has accepted the question.

        Raises ModelError, on entering and while iterating. Leaving closes the connection, which stops the model.
        """
        stream = self._open(turns)
        try:
            yield _chunks(stream)
        finally:
            stream.close()

    def _open(self, turns: list[Turn]) -> "openai.Stream[object]":
        """Send the question. A server that is unreachable or loading is asked again: it may be restarting."""
        for attempt in range(CONNECT_ATTEMPTS):
            try:
                # Unlike chat.completions.create(), plain dicts: validating each piece costs forty times its parsing.
                return self._client.post(
                    "/chat/completions",
                    body=self._parameters | {"messages": turns},
                    cast_to=object,
                    stream=True,
                    stream_cls=openai.Stream[object],
                )
            except openai.OpenAIError as error:
                if not _may_be_restarting(error) or attempt == CONNECT_ATTEMPTS - 1:
                    raise _explained(error) from None
                time.sleep(RETRY_PAUSE * (attempt + 1))
        raise AssertionError("unreachable")


def _may_be_restarting(error: openai.OpenAIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code == 503
    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _chunks(stream: "openai.Stream[object]") -> Iterator[Chunk]:
    try:
        for data in stream:
            chunk = _parse(data)
            if chunk is not None:
                yield chunk
    except (openai.OpenAIError, httpx2.HTTPError) as error:
        raise _explained(error) from None
    except (ValueError, TypeError, AttributeError, LookupError):  # no JSON, or not the API's
        log.warning("the model's stream cannot be read")
        raise ModelError(502, "The model sent something that cannot be read.") from None


def _parse(data: object) -> Chunk | None:
    """A server's event as a Chunk; None for events without anything of interest (role only, empty choices)."""
    if not isinstance(data, dict):
        raise TypeError("not an object")
    choices = data.get("choices") or [{}]
    usage = data.get("usage") or {}
    delta = choices[0].get("delta") or {}
    chunk = Chunk(
        # PostgreSQL cannot store NUL.
        text=(delta.get("content") or "").replace("\x00", ""),
        finish_reason=choices[0].get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )
    return None if chunk == Chunk() else chunk


def _explained(error: Exception) -> ModelError:
    """What a reader should be told. The provider's own text stays out of answer and log: it may quote key or prompt."""
    log.warning(
        "model error: %s",
        type(error).__name__,
        extra={"model_status": getattr(error, "status_code", None), "model_code": getattr(error, "code", None)},
    )
    match error:
        case openai.APITimeoutError() | httpx2.TimeoutException():
            return ModelError(504, "The model did not answer in time.")
        case openai.APIConnectionError() | httpx2.TransportError():
            return ModelError(503, "The model cannot be reached.", retry_after=5)
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return ModelError(502, "The model's provider refused this service's key; the administrator must mend it.")
        case openai.NotFoundError():
            return ModelError(502, "The provider does not know the configured model; the administrator must mend it.")
        case openai.RateLimitError():
            return ModelError(
                503,
                "The model's provider is limiting this service; try again in a moment.",
                retry_after=_retry_after(error),
            )
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            return ModelError(502, "The model refused the question; it may be too long for it.")
    return ModelError(502, "The model failed; try again.")


def _retry_after(error: openai.APIStatusError) -> int:
    value = error.response.headers.get("retry-after", "")
    return min(int(value), 3600) if value.isdigit() else 10
