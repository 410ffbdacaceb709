"""The OpenAPI document, as it is committed, and the page that shows it."""

from pathlib import Path

from flask import Blueprint, Response, redirect, send_file
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.wrappers import Response as WerkzeugResponse

DOCUMENT = Path(__file__).parents[2] / "openapi" / "openapi.json"

blp = Blueprint("docs", __name__)
# Without a word about the validator, the page would send the address of the document to the makers of Swagger UI.
PAGE_CONFIG = {"app_name": "Stripe Service", "validatorUrl": None}
swagger_ui = get_swaggerui_blueprint("/docs", "/openapi.json", config=PAGE_CONFIG)


@blp.get("/openapi.json")
def show_document() -> Response:
    """Send the committed document."""
    return send_file(DOCUMENT, mimetype="application/json")


@blp.get("/docs")
def open_page() -> WerkzeugResponse:
    """Go to the page; its assets lie below it."""
    return redirect("/docs/")
