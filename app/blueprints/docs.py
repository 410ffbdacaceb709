"""The OpenAPI document, as it is committed, and the page that shows it.

The page is `app/templates/index.template.html`: flask_swagger_ui asks for that name, and ours comes before its own.
"""

from pathlib import Path

from flask import Blueprint, Response, redirect, send_file
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.wrappers import Response as WerkzeugResponse

DOCUMENT = Path(__file__).parents[2] / "openapi" / "openapi.json"

blp = Blueprint("docs", __name__)
PAGE_CONFIG = {
    "app_name": "Stripe Service",
    # Without a word about the validator, the page would send the document's address to the makers of Swagger UI.
    "validatorUrl": None,
    # The browser keeps the key that somebody has typed, so that it is there again when the page is loaded again.
    "persistAuthorization": True,
    "defaultModelsExpandDepth": 0,
}
# The name, in the application's configuration, of a key that the page sends without being told to. No setting leads
# there: only the sandbox's own entry point fills it in, with a key that is no secret.
SHOWN_API_KEY = "DOCS_API_KEY"
# Likewise of the address of the stand-ins, where some play the other services.
STAND_INS_URL = "DOCS_STAND_INS_URL"
swagger_ui = get_swaggerui_blueprint("/docs", "/openapi.json", config=PAGE_CONFIG)


@blp.get("/openapi.json")
def show_document() -> Response:
    """Send the committed document."""
    return send_file(DOCUMENT, mimetype="application/json")


@blp.get("/docs")
def open_page() -> WerkzeugResponse:
    """Go to the page; its assets lie below it."""
    return redirect("/docs/")
