"""What a migration must not do: take away or tighten what the release before it uses.

That one runs on the new schema, during a release and after a rollback. The check compares what PostgreSQL says of its
schema before and after a migration, whatever the migration is made of. It does not see what a migration does to rows.
"""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import String, TypeEngine


@dataclass
class Table:
    """What statements of an older release rely on."""

    columns: dict[str, dict[str, Any]]
    # Rules that rows must keep, each as name (for messages) and content.
    rules: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    # Columns of which a combination is unique: ON CONFLICT names them.
    unique: frozenset[tuple[str, ...]] = frozenset()


type Schema = dict[str, Table]


def schema_of(connection: Connection) -> Schema:
    """The schema as it is."""
    inspector = inspect(connection)
    schema: Schema = {}
    for name in inspector.get_table_names():
        columns = {column["name"]: dict(column) for column in inspector.get_columns(name)}
        table = Table(columns)
        unique = [inspector.get_pk_constraint(name)["constrained_columns"]]
        for check in inspector.get_check_constraints(name):
            used = frozenset(column for column in columns if column in check["sqltext"])
            table.rules[f"check {check['name']}"] = check["sqltext"], used
        for key in inspector.get_foreign_keys(name):
            target = f"{key['referred_table']}({', '.join(key['referred_columns'])}) {key['options']}"
            used = frozenset(key["constrained_columns"])
            table.rules[f"foreign key {key['name']}"] = f"{sorted(used)} to {target}", used
        for index in inspector.get_indexes(name):  # those of unique constraints among them
            if index["unique"]:
                over = tuple(column or "an expression" for column in index["column_names"])
                unique.append(list(over))
                table.rules[f"unique {index['name']}"] = f"{over} {index.get('dialect_options')}", frozenset(over)
        table.rules["primary key"] = str(unique[0]), frozenset(unique[0])
        table.unique = frozenset(tuple(columns) for columns in unique if columns)
        schema[name] = table
    return schema


def breaks(before: Schema, after: Schema) -> list[str]:
    """What a release that fits `before` cannot stand in `after`, in words."""
    found: list[str] = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            found.append(f"table {name} is gone")
            continue
        found += [f"{name}: {what}" for what in (*_columns(old, new), *_rules(old, new))]
    return found


def _columns(old: Table, new: Table) -> list[str]:
    found: list[str] = []
    for name, column in new.columns.items():
        was = old.columns.get(name)
        required = not column["nullable"] and column["default"] is None and not column.get("identity")
        if was is None:
            if required and not column.get("computed"):
                found.append(f"new column {name} is NOT NULL without a server default")
            continue
        if not column["nullable"] and was["nullable"]:
            found.append(f"column {name} has become NOT NULL")
        elif required and was["default"] is not None:
            found.append(f"column {name} has lost its server default")
        if not _holds(column["type"], was["type"]):
            found.append(f"column {name} was {_named(was['type'])} and is {_named(column['type'])}")
    return [*(f"column {name} is gone" for name in old.columns.keys() - new.columns.keys()), *found]


def _holds(new: TypeEngine[Any], old: TypeEngine[Any]) -> bool:
    """Whether it is the same type, or the same with room for longer strings."""
    if isinstance(new, String) and isinstance(old, String):
        return new.length is None or (old.length is not None and new.length >= old.length)
    return _named(new) == _named(old)


def _named(kind: TypeEngine[Any]) -> str:
    """The type as PostgreSQL writes it, with precision and time zone."""
    return kind.compile(postgresql.dialect())  # type: ignore[no-untyped-call]


def _rules(old: Table, new: Table) -> list[str]:
    found: list[str] = []
    for name, (content, columns) in new.rules.items():
        if name in old.rules:
            if old.rules[name][0] != content:
                found.append(f"{name} has changed")
        # On new columns alone it cannot be broken by who does not know them: they stay null, or at their default.
        elif not columns or columns & old.columns.keys():
            found.append(f"{name} is new, on {', '.join(sorted(columns)) or 'an expression'}")
    gone = old.unique - new.unique
    return [*found, *(f"({', '.join(columns)}) is not unique any more" for columns in sorted(gone))]
