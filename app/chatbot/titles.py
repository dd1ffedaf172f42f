"""Titles of conversations: the first words of the question, or better ones from a model."""

import logging
import re
import time
import uuid

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from chatbot import metrics, usage
from chatbot.context import chars_of
from chatbot.database import CONVERSATIONS, Database
from chatbot.model import Model, ModelError, Turn

log = logging.getLogger(__name__)

MAX_CHARS = 60
MAX_WORDS = 6
# So much of question and answer is enough to know what it is about (characters).
EXCERPT = 1000
# A model that has not found a title by then (seconds, characters) will not find a good one.
PATIENCE = 30.0
MAX_ANSWER = 2000
INSTRUCTION = (
    "Give this conversation a title of at most six words, in its own language. "
    "Answer with the title alone, without quotation marks."
)


def title_of(content: str) -> str:
    """A title from the first message: its first words, at most MAX_CHARS characters."""
    line = " ".join(content.split())
    return line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1].rsplit(" ", 1)[0] + "…"


class Titles:
    """Asks a model for titles, in the background: nobody waits for them, and what goes wrong is logged."""

    def __init__(self, database: Database, model: Model, name: str) -> None:
        self._database = database
        self._model = model
        self._name = name

    def improve(self, owner: uuid.UUID, conversation_id: uuid.UUID, words: str, question: str, answer: str) -> None:
        """Replace the title `words`, which `title_of` has made; one that the user has given meanwhile stays.

        It costs the account `owner` tokens.
        """
        try:
            title = clean(self._ask(owner, question, answer))
        except ModelError:
            return  # the model's module has logged it
        if not title:
            return
        automatic = (CONVERSATIONS.c.id == conversation_id, CONVERSATIONS.c.title == words)
        try:
            with self._database.session() as session:
                session.connection().execute(update(CONVERSATIONS).where(*automatic).values(title=title))
        except SQLAlchemyError as failure:
            log.warning("could not save a title: %s", type(failure).__name__)

    def _ask(self, owner: uuid.UUID, question: str, answer: str) -> str:
        conversation = f"Question: {question[:EXCERPT]}\n\nAnswer: {answer[:EXCERPT]}"
        turns: list[Turn] = [{"role": "user", "content": f"{INSTRUCTION}\n\n{conversation}"}]
        text, pieces, begun = "", 0, time.monotonic()
        stream = self._model.answer(turns, self._name)
        prompt_tokens = completion_tokens = None
        try:
            for chunk in stream:
                text += chunk.text
                pieces += chunk.pieces
                prompt_tokens = chunk.prompt_tokens or prompt_tokens
                completion_tokens = chunk.completion_tokens or completion_tokens
                if len(text) > MAX_ANSWER or time.monotonic() - begun > PATIENCE:
                    break
        finally:
            stream.close()
            if prompt_tokens is None:
                prompt_tokens = usage.estimate(chars_of(turns))
            self._count(owner, prompt_tokens, pieces if completion_tokens is None else completion_tokens)
        return text

    def _count(self, owner: uuid.UUID, prompt_tokens: int, completion_tokens: int) -> None:
        metrics.tokens_total.labels(self._name, "prompt").inc(prompt_tokens)
        metrics.tokens_total.labels(self._name, "completion").inc(completion_tokens)
        try:
            with self._database.statements() as run:
                usage.record(run, owner, prompt_tokens, completion_tokens)
        except SQLAlchemyError as failure:
            log.warning("could not count the tokens of a title: %s", type(failure).__name__)


def clean(text: str) -> str:
    """The title in what a model said: its last line, undecorated, of at most MAX_WORDS; empty where there is none."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = re.sub(r"^\W*(title|titel|titre|título)\s*:", "", lines[-1], flags=re.IGNORECASE)
    words = re.sub(r"^[\W_]+|[^\w?!)]+$", "", line).split()
    return title_of(" ".join(words[:MAX_WORDS]).rstrip(",;:"))
