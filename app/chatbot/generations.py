"""The answers that this process is writing: it starts, saves and stops them, and cleans up after dead processes."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import bindparam, event, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from chatbot import metrics, usage
from chatbot.database import MESSAGES, Database, Message, Status, now
from chatbot.generation import HANDED_OVER, WORKER_LOST, Generation, Job, Outcome
from chatbot.model import Model
from chatbot.streamlog import LogUnavailableError, StreamLog

log = logging.getLogger(__name__)

# Text older than this (seconds) is in the database, whatever happens to this process.
SAVE_EVERY = 3.0
# A process that has not renewed its message for so long is dead. Releases before this one renewed every 10 seconds.
LEASE = timedelta(seconds=20)
# How often the running answers are looked after (seconds).
TICK = 0.5


class Generations:
    """All generations of one process. `max_seconds` is the longest time one may take."""

    def __init__(self, database: Database, model: Model, stream_log: StreamLog, max_seconds: float) -> None:
        self._database = database
        self._model = model
        self._log = stream_log
        self._max_seconds = max_seconds
        self._lock = threading.Lock()
        self._running: dict[str, Generation] = {}
        self._saved: dict[str, int] = {}  # characters of each that the database had at the last save
        self._keeping = False
        stream_log.on_stop(self.stop_here)

    def start(self, job: Job) -> Generation:
        """Begin to write a message, which is `streaming` in the database."""
        generation = Generation(self._database, self._model, self._log, job)
        with self._lock:
            self._running[str(job.message_id)] = generation
            metrics.running_generations.inc()
            start_keeper, self._keeping = not self._keeping, True
        threading.Thread(
            # Not with the job: its turns are as long as the conversation, and the model has them soon.
            target=self._run,
            args=(generation, job.then),
            name=f"generation-{job.message_id}",
            daemon=True,
        ).start()
        if start_keeper:
            threading.Thread(target=self._keep, name="generation-keeper", daemon=True).start()
        return generation

    def stop(self, message_id: uuid.UUID) -> None:
        """Stop an answer, whichever process writes it. Raises LogUnavailableError when that one cannot be told."""
        if not self.stop_here(str(message_id)) and not self._stop_between(message_id):
            self._log.request_stop(str(message_id))

    def _stop_between(self, message_id: uuid.UUID) -> bool:
        """Stop an answer that one process has handed over and no other has claimed; False where it is not so."""
        waiting = Message.id == message_id, Message.status == Status.STREAMING, Message.finish_reason == HANDED_OVER
        ended = {"status": Status.STOPPED, "finish_reason": "stopped", "updated_at": now()}
        with self._database.session() as session:
            message = session.scalar(update(Message).where(*waiting).values(ended).returning(Message))
        if message is None:
            return False
        self._tell_end(message)
        return True

    def hand_over(self) -> None:
        """Leave all running answers to other processes. Returns at once; `running` says when they are saved."""
        for generation in self._all():
            if not generation.ended:
                threading.Thread(target=generation.hand_over, name="generation-hand-over", daemon=True).start()

    def running(self) -> int:
        """How many answers are being written or saved."""
        return sum(not generation.finished for generation in self._all())

    def reap(self, session: Session, *which: uuid.UUID) -> None:
        """Mark answers (these, or all) whose process has died as interrupted, with all the text that can be found.

        That is what was saved last, and what the log has beyond it. Readers are told after the session has committed:
        who hears that an answer has ended finds it so.
        """
        # Not its own: after an outage of the database nobody could renew anything.
        alive = [generation.message_id for generation in self._all()]
        dead = select(Message).where(
            Message.status == Status.STREAMING, Message.updated_at < now() - LEASE, Message.id.not_in(alive)
        )
        if which:
            dead = dead.where(Message.id.in_(which))
        found = session.scalars(dead.with_for_update(skip_locked=True)).all()
        # Whoever handed an answer over has counted what it used.
        uncounted = [message for message in found if message.finish_reason != HANDED_OVER]
        for message in found:
            message.content += self._beyond(message)
            message.status = Status.INTERRUPTED
            message.finish_reason = WORKER_LOST
            message.updated_at = now()
        usage.record_lost(session, uncounted, self._model.context_tokens)
        if found:
            event.listen(session, "after_commit", lambda _: self._tell_lost(found), once=True)

    def _tell_lost(self, messages: Sequence[Message]) -> None:
        for message in messages:
            log.warning("an answer lost its process", extra={"message_id": str(message.id)})
            self._tell_end(message)

    def _tell_end(self, message: Message) -> None:
        """Count and close an answer that has ended without a process."""
        model = message.model or self._model.name
        metrics.messages_total.labels("assistant", model).inc()
        metrics.count_answer(model, message.status, message.finish_reason or "")
        self._log.close(str(message.id), len(message.content), outcome_of(message).encoded())

    def reap_all(self) -> None:
        """The same in a transaction of its own; what goes wrong is logged, since nobody waits for it."""
        try:
            with self._database.session() as session:
                self.reap(session)
        except SQLAlchemyError as failure:
            log.warning("could not look for dead answers: %s", type(failure).__name__)

    def _all(self) -> list[Generation]:
        with self._lock:
            return list(self._running.values())

    def _run(self, generation: Generation, then: Callable[[str], None] | None) -> None:
        generation.run()
        stream = str(generation.message_id)
        with self._lock:
            if self._running.get(stream) is generation:  # and not its continuation
                del self._running[stream]
                self._saved.pop(stream, None)
            metrics.running_generations.dec()
        if then is not None and generation.completed:
            then(generation.snapshot()[0])

    def stop_here(self, stream: str) -> bool:
        """Stop an answer that this process writes; False where it does not."""
        generation = self._running.get(stream)
        if generation is None:
            return False
        _stop(generation, Status.STOPPED, "stopped")
        return True

    def _beyond(self, message: Message) -> str:
        """What the log has of an answer beyond the text in the database."""
        text, known = [], len(message.content)
        try:
            for entry in self._log.tail(str(message.id)):
                start = entry.end - len(entry.text)
                if start > known:
                    break
                text.append(entry.text[known - start :])
                known = max(known, entry.end)
        except LogUnavailableError:
            log.warning("the log of a dead answer cannot be read", extra={"message_id": str(message.id)})
        return "".join(text)

    def _keep(self) -> None:
        """Save, renew and limit the running answers until there are none."""
        saved = time.monotonic()
        while True:
            time.sleep(TICK)
            with self._lock:
                if not self._running:
                    self._keeping = False
                    return
            clock = time.monotonic()
            for generation in self._all():
                if clock - generation.started > self._max_seconds:
                    _stop(generation, Status.INTERRUPTED, "time_limit")
            if clock - saved >= SAVE_EVERY:
                saved = clock
                self._save(self._all())

    def _save(self, generations: Sequence[Generation]) -> None:
        """Write all texts in one transaction, and end what somebody else has ended or deleted."""
        snapshots = {generation.message_id: generation.snapshot() for generation in generations}
        if not snapshots:
            return
        table = MESSAGES
        statement = (
            update(table)
            # Not what was handed over since the snapshot: its text is longer, and perhaps another process's by now.
            .where(
                table.c.id == bindparam("message"),
                table.c.status == Status.STREAMING,
                table.c.finish_reason.is_(None),
            )
            .values(content=bindparam("text"), updated_at=bindparam("clock"))
        )
        clock = now()
        rows = [{"message": key, "text": text, "clock": clock} for key, (text, _) in snapshots.items()]
        try:
            with self._database.engine.begin() as connection:
                connection.execute(statement, rows)
                wanted = set(
                    connection.scalars(
                        select(table.c.id).where(table.c.id.in_(snapshots), table.c.status == Status.STREAMING)
                    )
                )
        except SQLAlchemyError as failure:
            log.warning("could not save running answers: %s", type(failure).__name__)
            return
        for generation in generations:
            stream = str(generation.message_id)
            if generation.message_id in wanted:
                # Readers may lag: what they still need stays in the log for another round.
                self._log.trim(stream, self._saved.get(stream, 0))
                self._saved[stream] = snapshots[generation.message_id][1]
            elif stream in self._running:
                _stop(generation, Status.INTERRUPTED, "superseded")


def _stop(generation: Generation, status: Status, reason: str) -> None:
    """Without waiting for the last save."""
    if not generation.ended:
        threading.Thread(target=generation.stop, args=(status, reason), name="generation-stop", daemon=True).start()


def outcome_of(message: Message) -> Outcome:
    """The outcome of an answer that has ended, from the database."""
    return Outcome(
        Status(message.status), message.finish_reason, message.prompt_tokens, message.completion_tokens, message.error
    )
