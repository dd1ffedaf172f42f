"""What comes in and goes out: JSON and query strings, checked, or a problem that says what is wrong."""

from collections.abc import Mapping
from typing import Annotated

import orjson
from flask import Response, request
from pydantic import AfterValidator, BaseModel, Field, Strict, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from chatbot.problems import Problem


def storable(text: str) -> str:
    """PostgreSQL cannot store NUL."""
    if "\x00" in text:
        raise ValueError("must not contain NUL")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Content = Annotated[
    str,
    Strict(),
    AfterValidator(storable),
    AfterValidator(_not_blank),
    Field(json_schema_extra={"minLength": 1, "pattern": r"\S"}),
]


def read_body[Body: BaseModel](model: type[Body], *, optional: bool = False) -> Body:
    """The request's body as `model`; a Problem that says what is wrong otherwise."""
    raw = request.get_data()
    if request.content_length is None and len(raw) >= (request.max_content_length or 0):
        raise RequestEntityTooLarge  # werkzeug cuts a chunked body off at the limit without a word
    if optional and not raw:
        return model()
    if request.mimetype != "application/json":
        raise Problem(415, "Unsupported media type", "Send the body as application/json.")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "Malformed JSON", f"The body is not valid JSON: {error}.") from None
    return _checked(model, data)


def read_query[Query: BaseModel](model: type[Query]) -> Query:
    """The request's query string as `model`; a Problem that says what is wrong otherwise."""
    for name, values in request.args.lists():
        if len(values) > 1:
            raise invalid(name, "must be given once")
    return _checked(model, request.args.to_dict())


def invalid(field: str, message: str) -> Problem:
    """The problem of one wrong field."""
    return Problem(422, "Invalid request", f"{field}: {message}", errors=[{"field": field, "message": message}])


def respond(answer: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer as JSON."""
    return Response(answer.model_dump_json(), status, headers, content_type="application/json")


def _checked[Checked: BaseModel](model: type[Checked], data: object) -> Checked:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = [
            {"field": ".".join(map(str, item["loc"])) or "body", "message": item["msg"].removeprefix("Value error, ")}
            for item in error.errors()
        ]
        detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
        raise Problem(422, "Invalid request", detail, errors=errors) from None
