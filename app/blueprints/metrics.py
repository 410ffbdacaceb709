"""What the service measures."""

from flask import Response

from app.metrics import CONTENT_TYPE, render
from app.request_context import services
from app.services.operators.backlog import find_backlog
from app.web import Blueprint

# Of the many.
ONE_LINE = 'stripe_service_events_total{outcome="stored"} 42.0\n'

blp = Blueprint("metrics", __name__, description="What the service measures.")


@blp.route("/metrics")
@blp.response(
    200, {"type": "string"}, content_type="text/plain", description="Prometheus' text format.", example=ONE_LINE
)
@blp.errors(401, "invalid_api_key", "service_key_required")
def get_metrics() -> Response:
    """Show the service's metrics to Prometheus.

    The API key may also be sent as a bearer token.
    """
    return Response(render(find_backlog(services()), services().settings.metrics_directory), content_type=CONTENT_TYPE)
