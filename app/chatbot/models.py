"""The API of models."""

from flask import Blueprint, Response

from chatbot import schemas, services
from chatbot.bodies import respond
from chatbot.openapi import operation

blueprint = Blueprint("models", __name__, url_prefix="/api/v1/models")


@blueprint.get("")
@operation({200: schemas.ModelList})
def index() -> Response:
    """The models to choose from.

    Those that the administrator has selected, or all that the provider offers.
    """
    default = services.model().name
    models = [schemas.OfferedModel(id=name, default=name == default) for name in services.selection().names()]
    return respond(schemas.ModelList(models=models))
