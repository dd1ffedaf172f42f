"""Statements that every question needs, without what SQLAlchemy costs at each execution: four times the driver's work.

They are written with SQLAlchemy, on the tables and once. On PostgreSQL they are compiled once and run by psycopg, which
prepares them; elsewhere SQLAlchemy runs them. Rows have attributes named like the columns, and on PostgreSQL the
driver's types: aware times of any zone. A parameter must not be named like a column that the statement writes.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg
from gevent import monkey
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.rows import namedtuple_row
from psycopg.waiting import Wait
from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.sql.base import Executable

type Processor = Callable[[Any], Any]


class Run(Protocol):
    """Runs one statement with values for its parameters; the rows that it gives."""

    def __call__(self, statement: Executable, **values: object) -> Sequence[Any]:
        """Raises SQLAlchemy's errors."""


def through(session: Session | Connection) -> Run:
    """Run statements in a transaction of SQLAlchemy's."""

    def run(statement: Executable, **values: object) -> Sequence[Any]:
        result: CursorResult[Any] = session.execute(statement, values)  # type: ignore[assignment]  # as it always is
        return result.all() if result.returns_rows else ()

    return run


class Statements:
    """Runs statements on connections of an engine's pool."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._compiled: dict[Executable, _Compiled] = {}

    @contextmanager
    def run(self, *, transaction: bool = False) -> Iterator[Run]:
        """Run each statement on its own, or all in one transaction: kept at the end, undone on an error."""
        if self._engine.dialect.driver == "psycopg":
            with self._driver() as driver:
                if transaction:
                    with driver.transaction():
                        yield self._on(driver)
                else:
                    yield self._on(driver)
        elif transaction:
            with self._engine.begin() as connection:
                yield through(connection)
        else:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield through(connection)

    @contextmanager
    def _driver(self) -> Iterator["psycopg.Connection[Any]"]:
        """psycopg's connection out of the pool, in the mode without a transaction around everything."""
        try:
            pooled = self._engine.raw_connection()
            driver: psycopg.Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
            try:
                driver.autocommit = True
                yield driver
            finally:
                try:
                    driver.autocommit = False
                except psycopg.Error:  # it has broken, or was left in the middle of a statement
                    pooled.invalidate()
                pooled.close()
        except psycopg.Error as error:
            wrapped = DBAPIError.instance("", None, error, psycopg.Error, True, dialect=self._engine.dialect)
            raise wrapped from error

    def _on(self, driver: "psycopg.Connection[Any]") -> Run:
        def run(statement: Executable, **values: object) -> Sequence[Any]:
            compiled = self._compiled.get(statement)
            if compiled is None:
                compiled = self._compiled[statement] = _Compiled(statement, self._engine)
            cursor = driver.cursor(row_factory=namedtuple_row)
            cursor.execute(compiled.text, compiled.parameters(values))
            return cursor.fetchall() if cursor.description else ()

        return run


class _Compiled:
    """A statement as psycopg takes it."""

    def __init__(self, statement: Executable, engine: Engine) -> None:
        compiled = statement.compile(engine, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
        self.text: str = str(compiled)
        self._constants: dict[str, Any] = dict(compiled.params)
        self._processors: dict[str, Processor] = {}
        for bind, name in compiled.bind_names.items():
            processor = bind.type.dialect_impl(engine.dialect).bind_processor(engine.dialect)
            if processor is not None:
                self._processors[name] = processor

    def parameters(self, values: dict[str, object]) -> dict[str, Any]:
        """All its parameters."""
        parameters = self._constants | values
        for name, processor in self._processors.items():
            parameters[name] = processor(parameters[name])
        return parameters


class GeventConnection(psycopg.Connection[Any]):
    """Waits for PostgreSQL by gevent's own means: psycopg's way, through gevent's imitation of poll(), costs as much as
    the rest of a short statement.
    """

    def wait[Value](
        self, gen: Generator[Any, Any, Value], interval: float = 0.1, timeout: float | None = None
    ) -> Value:
        """Let other greenlets run until `gen` has its answer."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            state = next(gen)
            while True:
                WAYS_TO_WAIT[state](self.pgconn.socket)
                state = gen.send(state)
        except StopIteration as end:
            value: Value = end.value
            return value


WAYS_TO_WAIT = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}


def connect_by_gevent(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    """SQLAlchemy's hook `do_connect`: a connection that suits gevent, where gevent has taken over."""
    return GeventConnection.connect(*arguments, **options) if monkey.is_module_patched("select") else None
