"""Access to the model: the only module that knows the openai library."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai
import orjson

from chatbot.settings import Settings
from chatbot.sse import DataParser
from chatbot.transport import Transport

log = logging.getLogger(__name__)

CONNECT_ATTEMPTS = 3
RETRY_PAUSE = 0.5  # seconds before the second attempt, twice that before the third
# Seconds between two reads of an answer. Shorter than anybody notices, long enough for several tokens.
READ_PAUSE = 0.04
# Where a pause lasts longer than asked for, the process is busy: the next ones are longer by so many times the delay,
# up to the second number (seconds), and leave the processor to those who wait for their first word.
PAUSE_PER_DELAY = 4
LONGEST_PAUSE = 0.25
# The data of the API's last event.
DONE = b"[DONE]"


class Turn(TypedDict):
    """One message as the chat-completions API wants it."""

    role: str
    content: str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read of an answer brought: text of so many pieces, and towards the end why it ended and what it used."""

    text: str = ""
    pieces: int = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ModelError(Exception):
    """The model gave no (whole) answer. The message is for the reader and holds nothing of the provider's text.

    `kind` is one of metrics.ERROR_KINDS, for the administrator.
    """

    def __init__(self, status: int, detail: str, *, kind: str = "failed", retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.retry_after = retry_after


class Model:
    """A model behind an OpenAI-compatible API."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.model_name
        self.context_tokens = settings.model_context_tokens
        self._client = openai.OpenAI(
            base_url=settings.model_base_url,
            api_key=settings.model_api_key.get_secret_value(),
            timeout=httpx2.Timeout(settings.model_timeout, connect=5, pool=5),
            http_client=_http_client(settings.model_base_url),
            # The library would sleep for as long as the provider asks; a reader wants to know at once.
            max_retries=0,
        )
        # The library names this platform in every request, and starts a program to learn it: before the first question.
        _ = self._client.default_headers
        self._without_body = httpx2.Request("POST", self._client.base_url)
        # OpenAI's newer models refuse the old name, other servers may not know the new one.
        limit = (
            "max_completion_tokens" if urlsplit(settings.model_base_url).hostname == "api.openai.com" else "max_tokens"
        )
        self._parameters: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True},
            limit: settings.model_max_tokens,
        }
        if settings.model_temperature is not None:
            self._parameters["temperature"] = settings.model_temperature

    def answer(self, turns: list[Turn], model: str | None = None) -> "Answer":
        """Ask (the configured model by default); returns when it has accepted the question. Raises ModelError."""
        return Answer(self._open(self._parameters | {"model": model or self.name, "messages": turns}))

    def offered(self, seconds: float) -> list[str]:
        """The names of the provider's models. Raises ModelError, also when it needs longer than `seconds`."""
        try:
            page = self._client.with_options(timeout=seconds).models.list()
            return [item.id for item in page.data if isinstance(item.id, str)]
        except openai.OpenAIError as error:
            raise _explained(error) from None
        except (ValueError, TypeError, AttributeError):  # no JSON, or not the API's
            raise ModelError(502, "The provider's list of models cannot be read.", kind="malformed") from None

    def _open(self, body: dict[str, Any]) -> httpx2.Response:
        """Send the question. A server that is unreachable or loading is asked again: it may be restarting."""
        content = orjson.dumps(body)
        for attempt in range(CONNECT_ATTEMPTS):
            try:
                # Unlike chat.completions.create(): JSON goes in, and out comes the response as it is.
                response = self._client.post(
                    "/chat/completions", content=content, cast_to=object, stream=True, stream_cls=_Unread
                ).response
                # It would keep its request, a whole context window, for as long as the answer is being written.
                response.request = self._without_body
                return response
            except openai.OpenAIError as error:
                if not _may_be_restarting(error) or attempt == CONNECT_ATTEMPTS - 1:
                    raise _explained(error) from None
                time.sleep(RETRY_PAUSE * (attempt + 1))
        raise AssertionError("unreachable")


class _Unread(openai.Stream[object]):
    """A response that nobody has begun to read. The library's own refers to itself: it and its request would stay."""

    def __init__(self, *, response: httpx2.Response, **_others: object) -> None:
        self.response = response


def _http_client(url: str) -> httpx2.Client:
    """The library's own client on our transport; with httpx2's where the environment names a proxy for this URL."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxied = (parts.scheme in proxies or "all" in proxies) and not proxy_bypass(parts.hostname or "")
    return openai.DefaultHttpx2Client() if proxied else openai.DefaultHttpx2Client(transport=Transport())


def _may_be_restarting(error: openai.OpenAIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code == 503
    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


class Answer:
    """An answer that the model is giving. Iterating gives what arrives as Chunks and raises ModelError."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[Chunk]:
        parser = DataParser()
        pause = READ_PAUSE
        try:
            for data in self._response.iter_bytes():
                read = time.monotonic()
                events = parser.feed(data)
                if events:
                    chunk = _parse(events)
                    if chunk != Chunk():
                        yield chunk
                    if DONE in events:
                        return
                    if chunk.text:
                        # What comes meanwhile is taken in one read: token by token would cost several times as much.
                        time.sleep(pause)
                        delay = time.monotonic() - read - pause
                        pause = min(LONGEST_PAUSE, READ_PAUSE + PAUSE_PER_DELAY * delay)
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            if not self._closed:
                raise _explained(error) from None
        except (ValueError, TypeError, AttributeError, LookupError):  # no JSON, or not the API's
            log.warning("the model's stream cannot be read")
            raise ModelError(502, "The model sent something that cannot be read.", kind="malformed") from None
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, which stops the model and ends the iteration. Any thread may do that."""
        self._closed = True
        self._response.close()


def _parse(events: list[bytes]) -> Chunk:
    """Events of the chat-completions API as one Chunk. Raises ModelError for an error that the model reports."""
    texts: list[str] = []
    finish_reason = None
    usage: dict[str, Any] = {}
    for event in events:
        if event == DONE:
            break
        data = orjson.loads(event)
        if data.get("error"):
            log.warning("model error inside the stream")
            raise ModelError(502, "The model failed; try again.")
        for choice in data.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                texts.append(text)
            finish_reason = choice.get("finish_reason") or finish_reason
        usage = data.get("usage") or usage
    return Chunk(
        # PostgreSQL cannot store NUL.
        text="".join(texts).replace("\x00", ""),
        pieces=len(texts),
        finish_reason=finish_reason,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _explained(error: Exception) -> ModelError:
    """What a reader should be told. The provider's own text stays out of answer and log: it may quote key or prompt."""
    log.warning(
        "model error: %s",
        type(error).__name__,
        extra={"model_status": getattr(error, "status_code", None), "model_code": getattr(error, "code", None)},
    )
    match error:
        case openai.APITimeoutError() | httpx2.TimeoutException():
            return ModelError(504, "The model did not answer in time.", kind="timeout")
        case openai.APIConnectionError() | httpx2.TransportError():
            return ModelError(503, "The model cannot be reached.", kind="unreachable", retry_after=5)
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return ModelError(
                502,
                "The model's provider refused this service's key; the administrator must mend it.",
                kind="credentials",
            )
        case openai.NotFoundError():
            return ModelError(
                502,
                "The provider does not know this model; choose another one, or the administrator must mend it.",
                kind="unknown_model",
            )
        case openai.RateLimitError():
            return ModelError(
                503,
                "The model's provider is limiting this service; try again in a moment.",
                kind="rate_limit",
                retry_after=_retry_after(error),
            )
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            return ModelError(502, "The model refused the question; it may be too long for it.", kind="rejected")
    return ModelError(502, "The model failed; try again.")


def _retry_after(error: openai.APIStatusError) -> int:
    value = error.response.headers.get("retry-after", "")
    return min(int(value), 3600) if value.isdigit() else 10
