"""runs-service: what is read of its answers."""

import json
from typing import Any

import pytest

from app.errors import UpstreamError
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.runs import RunsClient
from tests.services.upstreams import answering, upstream


def costs_of_run(quantity: Any) -> dict[str, int]:
    """What is read of a run that was charged twice, the first time with this quantity."""
    costs = [{"costName": "stripe-payment-intent", "quantity": each} for each in (quantity, 1)]
    body = json.dumps({"id": "run_1", "status": "running", "costs": costs}).encode()
    with upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))) as server:
        runs = RunsClient(url=server.url, api_key="k", timeout_seconds=5)
        return dict(runs.get("run_1", CallContext("GET", "/x", "request-1", Deadline.after(5))).costs)


class TestGet:
    @pytest.mark.parametrize("quantity", [2, 2.0, "2", "2.0", "2.000000", "2E0"])
    def test_it_reads_a_quantity_as_a_number_or_as_text(self, quantity: Any) -> None:
        assert costs_of_run(quantity) == {"stripe-payment-intent": 3}

    @pytest.mark.parametrize("quantity", [None, True, "", "two", 1.5, "1.5", -1, "NaN", "Infinity", "1e999999", [], {}])
    def test_it_raises_when_a_quantity_is_no_count(self, quantity: Any) -> None:
        with pytest.raises(UpstreamError):
            costs_of_run(quantity)
