"""The API's description (OpenAPI 3.1), made from the routes, the views' docstrings and the Pydantic models.

`operation` says at each view what cannot be seen from outside. It does not touch the view: nothing is checked twice,
and a request costs nothing more.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from flask import Blueprint, Flask, Response, current_app
from pydantic import BaseModel, WithJsonSchema
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from werkzeug.routing import Rule

from chatbot import services
from chatbot.identity import SAFE_METHODS, Access, anybody
from chatbot.schemas import ProblemDocument

blueprint = Blueprint("openapi", __name__, url_prefix="/api/v1")

PREFIX = "/api/v1"
REFERENCE = "#/components/schemas/{model}"
# What every operation may answer: an error of ours, or a database that is down.
COMMON_PROBLEMS = (500, 503)
# And where an account is needed: nobody is signed in; no CSRF token, or not allowed.
ACCOUNT_PROBLEMS = (401, 403)
SECURITY_SCHEMES = {
    "cookie": {"type": "apiKey", "in": "cookie", "name": "chatbot_session", "description": "A signed-in browser."},
    "csrf": {
        "type": "apiKey",
        "in": "header",
        "name": "X-CSRFToken",
        "description": "Goes with the cookie in all that changes something; GET /session tells it.",
    },
    "token": {"type": "http", "scheme": "bearer", "description": "An API token (`cbt_…`), within its scopes."},
}
PROBLEM = "application/problem+json"


class Upload(BaseModel):
    """A form with one file. Described here only: werkzeug reads it."""

    file: Annotated[
        bytes, WithJsonSchema({"type": "string", "minLength": 1, "contentMediaType": "application/octet-stream"})
    ]


@dataclass(frozen=True, slots=True)
class Media:
    """An answer that is not JSON."""

    type: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


FILE = Media("*/*", "The file, as an attachment.")
EVENTS = Media(
    "text/event-stream",
    "Server-Sent Events: `start`, `delta`…, then `done` or `error`; `data` is JSON. See app/README.md.",
    # Of one event.
    {
        "type": "object",
        "properties": {
            "event": {"enum": ["start", "delta", "done", "error"]},
            "id": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    },
)

type Content = type[BaseModel] | Media


@dataclass(frozen=True, slots=True)
class Operation:
    """What a view takes and answers."""

    answers: Mapping[int, tuple[Content, ...]]
    body: type[BaseModel] | None
    body_optional: bool
    query: type[BaseModel] | None
    headers: tuple[dict[str, Any], ...]
    problems: tuple[int, ...]

    def models(self) -> list[tuple[type[BaseModel], JsonSchemaMode]]:
        """The models it refers to."""
        answers = [content for contents in self.answers.values() for content in contents if isinstance(content, type)]
        return [(model, "serialization") for model in answers] + ([(self.body, "validation")] if self.body else [])


def operation[View: Callable[..., Any]](
    answers: Mapping[int, Content | tuple[Content, ...]],
    *,
    body: type[BaseModel] | None = None,
    body_optional: bool = False,
    query: type[BaseModel] | None = None,
    headers: Iterable[dict[str, Any]] = (),
    problems: Iterable[int] = (),
) -> Callable[[View], View]:
    """Describe a view: what it answers with each status, what it takes, and the statuses of its problems."""
    contents = {status: content if isinstance(content, tuple) else (content,) for status, content in answers.items()}

    def describe(view: View) -> View:
        view.operation = Operation(  # type: ignore[attr-defined]
            contents, body, body_optional, query, tuple(headers), (*problems, *COMMON_PROBLEMS)
        )
        return view

    return describe


@blueprint.get("/openapi.json")
@anybody
def document() -> Response:
    """The API's description."""
    if "openapi" not in current_app.extensions:
        current_app.extensions["openapi"] = orjson.dumps(describe_api(current_app, services.settings().release))
    return Response(current_app.extensions["openapi"], content_type="application/json")


def routes(app: Flask) -> list[tuple[Rule, str, Operation | None]]:
    """The API's routes: rule, method, and the description where the view has one."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(f"{PREFIX}/") and rule.endpoint != "openapi.document":
            view = app.view_functions[rule.endpoint]
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                found.append((rule, method, getattr(view, "operation", None)))
    return found


def describe_api(app: Flask, release: str) -> dict[str, Any]:
    """The document, as JSON types. Views without description are left out; a test says which they are."""
    described = [(rule, method, described) for rule, method, described in routes(app) if described is not None]
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ProblemDocument, "serialization"): None}
    for *_, what in described:
        models |= dict.fromkeys(what.models())
    references, definitions = models_json_schema(list(models), ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for rule, method, what in described:
        path = re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule.rule.removeprefix(PREFIX))
        view = app.view_functions[rule.endpoint]
        paths.setdefault(path, {})[method.lower()] = _operation(
            rule, what, view.__doc__ or "", references, _security(method, getattr(view, "access", None))
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chatbot", "version": release, "description": "Errors are problem documents (RFC 9457)."},
        "servers": [{"url": PREFIX}],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": definitions["$defs"], "securitySchemes": SECURITY_SCHEMES},
    }


def _security(method: str, access: Access | None) -> list[dict[str, list[str]]]:
    """Who may ask: one of these; nobody in particular where there are none."""
    if access is Access.ANYBODY:
        return []
    browser: dict[str, list[str]] = {"cookie": []} if method in SAFE_METHODS else {"cookie": [], "csrf": []}
    return [browser] if access is Access.IN_PERSON else [browser, {"token": []}]


def _operation(
    rule: Rule, what: Operation, text: str, references: Mapping[Any, Any], security: list[dict[str, list[str]]]
) -> dict[str, Any]:
    summary, _, description = (line.strip() for line in text.strip().partition("\n"))
    described: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [rule.endpoint.partition(".")[0]],
        "summary": summary,
        "description": re.sub(r"\n +", "\n", description),
        "security": security,
        "parameters": [*_path_parameters(rule), *_query_parameters(what.query), *what.headers],
        "responses": _responses(what, (*what.problems, *(ACCOUNT_PROBLEMS if security else ())), references),
    }
    if what.body is not None:
        media = "multipart/form-data" if what.body is Upload else "application/json"
        schema = references[what.body, "validation"]
        described["requestBody"] = {"required": not what.body_optional, "content": {media: {"schema": schema}}}
    return described


def _path_parameters(rule: Rule) -> list[dict[str, Any]]:
    names = re.findall(r"<(?:[^:>]+:)?([^>]+)>", rule.rule)
    schema = {"type": "string", "format": "uuid"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _query_parameters(query: type[BaseModel] | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    schema = query.model_json_schema(ref_template=REFERENCE)
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]


def _responses(what: Operation, statuses: Iterable[int], references: Mapping[Any, Any]) -> dict[str, Any]:
    problem = {PROBLEM: {"schema": references[ProblemDocument, "serialization"]}}
    answers = {str(status): _response(status, contents, references) for status, contents in what.answers.items()}
    problems = {
        str(status): {"description": HTTPStatus(status).phrase, "content": problem} for status in sorted(set(statuses))
    }
    return answers | {status: response for status, response in problems.items() if status not in answers}


def _response(status: int, contents: tuple[Content, ...], references: Mapping[Any, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    for content in contents:
        if isinstance(content, type):
            media, schema = "application/json", references[content, "serialization"]
        else:
            media, schema = content.type, content.schema
            response["description"] += f". {content.description}"
        response.setdefault("content", {})[media] = {"schema": schema}
    return response
