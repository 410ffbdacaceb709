"""The stand-in of runs-service, which keeps runs and their costs."""

from typing import Any

from flask import Blueprint, Response, jsonify, request

from app.sandbox.json_object import JsonObject
from app.sandbox.ledger import note
from app.sandbox.run_book import RunError
from app.sandbox.world import current_world

blueprint = Blueprint("runs-service", __name__, url_prefix="/runs-service")


@blueprint.before_request
def authenticate() -> None:
    if request.headers.get("X-API-Key") != current_world().settings.runs_service_api_key:
        raise RunError(401, "Invalid API key")


@blueprint.errorhandler(RunError)
def refuse(refusal: RunError) -> Response:
    return _answer({"error": str(refusal)}, refusal.status)


@blueprint.post("/v1/runs")
def create() -> Response:
    given = _body()
    note(app_id=given.get("appId"))
    run, again = current_world().runs.create(given)
    _note("run.create", run, again=again)
    return _answer(run, 201)


@blueprint.post("/v1/runs/<run_id>/costs")
def add_costs(run_id: str) -> Response:
    runs = current_world().runs
    costs, again = runs.add_costs(run_id, _body())
    _note("costs.add", runs.get(run_id), again=again)
    return _answer({"costs": costs}, 201)


@blueprint.patch("/v1/runs/<run_id>")
def update(run_id: str) -> Response:
    run = current_world().runs.end(run_id, _body())
    _note("run.update", run)
    return _answer(run)


@blueprint.get("/v1/runs/<run_id>")
def retrieve(run_id: str) -> Response:
    return _answer(current_world().runs.get(run_id))


@blueprint.get("/v1/runs")
def list_all() -> Response:
    runs, limit, offset = current_world().runs.find(request.args.to_dict())
    return _answer({"runs": runs, "limit": limit, "offset": offset})


@blueprint.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    raise RunError(404, "Not found")


def _body() -> JsonObject:
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        raise RunError(400, "The body must be a JSON object")
    note(idempotency_key=body.get("idempotencyKey"))
    return body


def _note(effect: str, run: JsonObject, *, again: bool = False) -> None:
    note(effect=None if again else effect, object_id=run["id"], app_id=run["appId"], replayed=again)


def _answer(answer: Any, status: int = 200) -> Response:
    response = jsonify(answer)
    response.status_code = status
    return response
