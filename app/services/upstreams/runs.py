"""runs-service: the runs that payments are tracked in, and their costs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from app.errors import ServiceError, UpstreamError, UpstreamUnavailable
from app.logs import about
from app.metrics import upstream_call
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.http import Transport

UPSTREAM = "runs-service"
SERVICE_NAME = "stripe-service"
PAGE_SIZE = 100
MAX_ID_LENGTH = 200
# Of one cost of a run: far more than all payments of a caller's run together.
MAX_QUANTITY = 10**9


class RunStatus(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Run:
    """A run, with how often each cost was added to it."""

    id: str
    status: str
    app_id: str | None = None
    costs: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a run is created with. The idempotency key is honoured by newer versions and ignored by older ones."""

    org_id: str
    app_id: str
    task_name: str
    idempotency_key: str
    parent_run_id: str | None = None
    brand_id: str | None = None
    campaign_id: str | None = None


class RunsRefusal(UpstreamError):
    """runs-service refused the call for good: no such run (404), or a cost that it doesn't know (422)."""

    code = "runs_service_refused"
    outcome = "refused"


class RunsClient:
    """Creates, reads and ends runs. Nothing but reading and ending may be repeated: both POSTs add each time."""

    def __init__(self, *, url: str, api_key: str, timeout_seconds: float) -> None:
        self._api_key = api_key
        self.timeout_seconds = timeout_seconds
        self._transport = Transport(UPSTREAM, url)

    def create(self, new: NewRun, context: CallContext) -> str:
        """Create a run and return its id.

        :raises UpstreamError: when it wasn't created (`executed` False), or nobody can tell (None).
        """
        body = {
            "clerkOrgId": new.org_id,
            "appId": new.app_id,
            "serviceName": SERVICE_NAME,
            "taskName": new.task_name,
            "parentRunId": new.parent_run_id,
            "brandId": new.brand_id,
            "campaignId": new.campaign_id,
            "idempotencyKey": new.idempotency_key,
        }
        try:
            run = _read_run(self._call("POST /v1/runs", context, {k: v for k, v in body.items() if v is not None}))
        except UpstreamError as error:
            raise error.with_sentence("Failed to create run in runs-service") from error
        about(run=run.id)
        return run.id

    def add_cost(self, run_id: str, cost_name: str, *, idempotency_key: str, context: CallContext) -> None:
        """Add one unit of a cost to a run.

        :raises RunsRefusal: when runs-service will never take it.
        :raises UpstreamError: when it wasn't added, or nobody can tell.
        """
        item = {"costName": cost_name, "quantity": 1}
        body = {"items": [item], "idempotencyKey": idempotency_key}
        about(run=run_id)
        self._call("POST /v1/runs/{id}/costs", context, body, run_id=run_id)

    def end(self, run_id: str, status: RunStatus, context: CallContext) -> None:
        """Complete or fail a run; doing so again is harmless.

        :raises RunsRefusal: when there is no such run.
        :raises UpstreamError: when runs-service doesn't answer as it should.
        """
        self._call("PATCH /v1/runs/{id}", context, {"status": status}, run_id=run_id)

    def get(self, run_id: str, context: CallContext) -> Run:
        """Read a run with its costs.

        :raises RunsRefusal: when there is no such run.
        :raises UpstreamError: when runs-service doesn't answer as it should.
        """
        return _read_run(self._call("GET /v1/runs/{id}", context, run_id=run_id))

    def list_running(
        self,
        *,
        org_id: str,
        task_name: str,
        parent_run_id: str | None,
        started_after: datetime,
        started_before: datetime,
        context: CallContext,
    ) -> Iterator[Run]:
        """Our running runs of an org and task that started in a span of time, page by page.

        :param parent_run_id: only the children of this run; None for those of any, or of none
        :raises UpstreamError: when runs-service doesn't answer as it should.
        """
        offset = 0
        while True:
            query = {
                "clerkOrgId": org_id,
                "serviceName": SERVICE_NAME,
                "taskName": task_name,
                "status": RunStatus.RUNNING,
                "startedAfter": started_after.isoformat(),
                "startedBefore": started_before.isoformat(),
                "limit": PAGE_SIZE,
                "offset": offset,
            } | ({"parentRunId": parent_run_id} if parent_run_id else {})
            page = self._call("GET /v1/runs", context, query=f"?{urlencode(query)}").get("runs")
            if not isinstance(page, list):
                raise UpstreamError(UPSTREAM, reason="answered a list without runs")
            yield from map(_read_run, page)
            if len(page) < PAGE_SIZE:
                return
            offset += PAGE_SIZE

    def _call(
        self, call: str, context: CallContext, body: object = None, *, run_id: str = "", query: str = ""
    ) -> dict[str, Any]:
        """Send a call, which is a method and the template of a path, and read the object that is answered."""
        method, _, template = call.partition(" ")
        path = template.replace("{id}", _segment(run_id)) + query
        with upstream_call(UPSTREAM, call):
            return self._exchange(method, path, context, body)

    def _exchange(self, method: str, path: str, context: CallContext, body: object) -> dict[str, Any]:
        answer = self._transport.send(
            method,
            path,
            headers={
                "X-API-Key": self._api_key,
                "X-Request-ID": context.request_id,
                "Content-Type": "application/json",
            },
            body=b"" if body is None else orjson.dumps(body),
            deadline=context.deadline.within(self.timeout_seconds),
            repeatable=method != "POST",
        )
        if answer.status in (200, 201):
            return _read_object(answer.body)
        raise _failure(answer.status)


def _failure(status: int) -> ServiceError:
    reason = f"answered {status}"
    if status in (404, 422):
        return RunsRefusal(UPSTREAM, reason=reason, executed=False)
    if status in (429, 502, 503, 504):
        return UpstreamUnavailable(UPSTREAM, reason=reason, executed=False if status == 429 else None)
    return UpstreamError(UPSTREAM, reason=reason, executed=False if 400 <= status < 500 else None)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise UpstreamError(UPSTREAM, reason="answered no JSON object")
    return answer


def _read_run(answer: Any) -> Run:
    try:
        costs: Counter[str] = Counter()
        for cost in answer.get("costs") or ():
            costs[cost["costName"]] += _count(cost["quantity"])
        run = Run(answer["id"], answer.get("status", ""), answer.get("appId"), costs)
    except (AttributeError, KeyError, TypeError, ValueError):
        run = None
    if run is None or not (isinstance(run.id, str) and 0 < len(run.id) <= MAX_ID_LENGTH and run.id.isprintable()):
        raise UpstreamError(UPSTREAM, reason="answered something that is no run") from None
    return run


def _count(told: object) -> int:
    """A whole number, which comes as `1`, `1.0` or as text such as `"1.000"`.

    :raises ValueError: when it is none, or more than anything of ours can be.
    """
    try:
        number = Decimal(str(told))
        is_count = number == number.to_integral_value() and 0 <= number <= MAX_QUANTITY
    except InvalidOperation:
        is_count = False
    if not is_count:
        raise ValueError("not a count")
    return int(number)


def _segment(run_id: str) -> str:
    # Dots are quoted too: a caller's run id `..` must stay one segment of the path.
    return quote(run_id, safe="").replace(".", "%2E")
