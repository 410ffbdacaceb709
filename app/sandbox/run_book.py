"""The runs that runs-service keeps, and what they cost."""

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from app.sandbox.clock import Clock
from app.sandbox.json_object import JsonObject

REQUIRED = ("clerkOrgId", "appId", "serviceName", "taskName")
OPTIONAL = ("parentRunId", "brandId", "campaignId")
FILTERS = (*REQUIRED, *OPTIONAL, "status")
ENDS = ("completed", "failed")
COST_NAMES = ("stripe-checkout-session", "stripe-payment-intent")
DEFAULT_LIMIT, MAX_LIMIT = 50, 500


class RunError(Exception):
    """A request that runs-service refuses with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RunBook:
    """Runs in the order they were made; `honour_idempotency_key` makes it a newer version."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: dict[str, JsonObject] = {}
        self._first_results: dict[str | None, Any] = {}
        self.honour_idempotency_key = False

    def create(self, given: JsonObject) -> tuple[JsonObject, bool]:
        """Make a run; the second value says whether it is an earlier one that is given again.

        :raises RunError: when a field is missing or wrong
        """
        self._check(given)
        key = self._key("runs", given)
        if key in self._first_results:
            return self.get(self._first_results[key]), True
        now = self._clock.iso()
        run: JsonObject = {
            "id": str(uuid.uuid4()),
            **{name: given.get(name) for name in (*REQUIRED, *OPTIONAL)},
            "status": "running",
            "startedAt": now,
            "completedAt": None,
            "createdAt": now,
            "updatedAt": now,
            "costs": [],
        }
        self._runs[run["id"]] = run
        self._remember(key, run["id"])
        return run, False

    def _check(self, given: JsonObject) -> None:
        for name in REQUIRED:
            if not isinstance(given.get(name), str) or not given[name]:
                raise RunError(400, f"{name} is required")
        for name in OPTIONAL:
            if not isinstance(given.get(name), str | None):
                raise RunError(400, f"{name} must be a string")
        parent = given.get("parentRunId")
        if parent is not None and not is_uuid(parent):
            raise RunError(400, "parentRunId must be a UUID")
        if parent is not None and parent not in self._runs:
            raise RunError(400, "parentRunId does not exist")

    def get(self, run_id: str) -> JsonObject:
        """:raises RunError: when there is no such run"""
        if run_id not in self._runs:
            raise RunError(404, "Run not found")
        return self._runs[run_id]

    def add_costs(self, run_id: str, given: JsonObject) -> tuple[list[JsonObject], bool]:
        """Add costs to a run; the second value says whether they are earlier ones that are given again.

        :raises RunError: when there is no such run, or a cost that nobody knows
        """
        run = self.get(run_id)
        items = _checked_items(given.get("items"))
        key = self._key(run_id, given)
        if key in self._first_results:
            return self._first_results[key], True
        costs = [
            {
                "id": str(uuid.uuid4()),
                "runId": run_id,
                "costName": item["costName"],
                "quantity": item["quantity"],
                "createdAt": self._clock.iso(),
            }
            for item in items
        ]
        run["costs"] += costs
        self._remember(key, costs)
        return costs, False

    def end(self, run_id: str, given: JsonObject) -> JsonObject:
        """Set the status that a run ends with; setting it again changes nothing.

        :raises RunError: when there is no such run or status
        """
        run = self.get(run_id)
        if given.get("status") not in ENDS:
            raise RunError(400, f"status must be one of {', '.join(ENDS)}")
        if run["status"] != given["status"]:
            now = self._clock.iso()
            run |= {"status": given["status"], "completedAt": now, "updatedAt": now}
        return run

    def find(self, query: dict[str, str]) -> tuple[list[JsonObject], int, int]:
        """The page of matching runs, newest first, with its limit and offset.

        :raises RunError: when the query can't be read
        """
        limit = min(_number(query, "limit", DEFAULT_LIMIT), MAX_LIMIT)
        offset = _number(query, "offset", 0)
        return list(self._matching(query))[offset : offset + limit], limit, offset

    def _matching(self, query: dict[str, str]) -> Iterator[JsonObject]:
        after, before = _time(query, "startedAfter"), _time(query, "startedBefore")
        wanted = {name: query[name] for name in FILTERS if name in query}
        for run in reversed(self._runs.values()):
            started = datetime.fromisoformat(run["startedAt"])
            within = (after is None or started >= after) and (before is None or started <= before)
            if within and all(run[name] == value for name, value in wanted.items()):
                yield run

    def all(self) -> list[JsonObject]:
        return list(reversed(self._runs.values()))

    def _key(self, scope: str, given: JsonObject) -> str | None:
        key = given.get("idempotencyKey")
        return f"{scope}/{key}" if self.honour_idempotency_key and isinstance(key, str) else None

    def _remember(self, key: str | None, result: Any) -> None:
        if key is not None:
            self._first_results[key] = result

    def clear(self) -> None:
        self._runs.clear()
        self._first_results.clear()
        self.honour_idempotency_key = False

    def to_state(self) -> JsonObject:
        return {
            "runs": self._runs,
            "firstResults": self._first_results,
            "honourIdempotencyKey": self.honour_idempotency_key,
        }

    def load(self, state: JsonObject) -> None:
        self._runs = state["runs"]
        self._first_results = state["firstResults"]
        self.honour_idempotency_key = state["honourIdempotencyKey"]


def is_uuid(value: str) -> bool:
    try:
        return str(uuid.UUID(value)) == value.lower()
    except ValueError:
        return False


def _checked_items(items: Any) -> list[JsonObject]:
    if not isinstance(items, list) or not items:
        raise RunError(400, "items must be a list of costs")
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("costName"), str):
            raise RunError(400, "costName is required")
        quantity = item.get("quantity")
        if isinstance(quantity, bool) or not isinstance(quantity, int | float) or quantity <= 0:
            raise RunError(400, "quantity must be a positive number")
        if item["costName"] not in COST_NAMES:
            raise RunError(422, f"Unknown cost name: {item['costName']}")
    return items


def _number(query: dict[str, str], name: str, default: int) -> int:
    value = query.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        raise RunError(400, f"{name} must be a whole number")
    return int(value)


def _time(query: dict[str, str], name: str) -> datetime | None:
    if name not in query:
        return None
    try:
        time = datetime.fromisoformat(query[name])
    except ValueError:
        raise RunError(400, f"{name} must be an ISO 8601 time") from None
    if time.tzinfo is None:
        raise RunError(400, f"{name} must say its time zone")
    return time
