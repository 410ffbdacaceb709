"""What Stripe's objects show, told by events; `tests/services/events/test_projection.py` has whole lives of them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from app.services.reconciliation.object_events import ObjectReader
from app.services.upstreams.stripe import Resource, Stripe

SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def nested(levels: int) -> dict[str, Any]:
    """Objects in each other, so many levels deep."""
    shape: dict[str, Any] = {}
    for _ in range(levels - 1):
        shape = {"a": shape}
    return shape


class Lists:
    """Stands for Stripe's API: lists of refunds, and empty ones of all else."""

    def __init__(self, *refunds: dict[str, Any]) -> None:
        self.refunds = refunds

    def list(
        self, resource: Resource[Any], app_id: str, filters: Mapping[str, Any], *, new_context: object
    ) -> Iterator[dict[str, Any]]:
        assert filters == {"created": {"gte": int(SINCE.timestamp())}}
        yield from self.refunds if resource.object == "refund" else ()


class TestReadReversals:
    @pytest.mark.parametrize("odd", [{"id": "re_deep", "a": nested(levels)} for levels in (200, 300, 600)])
    def test_it_passes_over_one_that_is_too_deep_and_hides_no_other(
        self, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        good = [{"id": f"re_{number}", "object": "refund"} for number in (1, 2)]
        stripe = cast(Stripe, Lists(good[0], odd, good[1]))
        reader = ObjectReader("shop", stripe, lambda: pytest.fail("nothing is asked"), read_at=7)

        told = list(reader.read_reversals(SINCE))

        assert [(event.type, event.created, event.object["id"]) for event in told] == [
            ("refund.updated", 7, "re_1"),
            ("refund.updated", 7, "re_2"),
        ]
        assert caplog.messages == ["'re_deep' can't be read: The body is not a Stripe event"]
