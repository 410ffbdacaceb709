"""Much to tell many endpoints, one of which hangs: how long it takes until the others are told."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from tests.cli.processes import Command
from tests.receivers import Receiver
from tests.services.notifications.conftest import Shop
from tests.soak import amount
from tests.waiting import wait_until

ENDPOINTS = amount(10, 100)
EVENTS_A_SECOND = amount(40, 1000)
SECONDS = amount(3, 60)
WORKERS = amount(1, 5)
MOST_LAG_SECONDS = 5.0

# What the fold writes, for the endpoints in turn: one second's worth at a time.
WRITE = text(
    "WITH told AS (INSERT INTO app_events (id, app_id, type, data) SELECT gen_random_uuid(), 'shop', 'ping', '{}'"
    " FROM generate_series(1, :count) RETURNING number, id)"
    " INSERT INTO deliveries (event_number, endpoint_id, subject) SELECT told.number, e.id, told.id::text FROM told"
    " JOIN (SELECT id, row_number() OVER (ORDER BY created_at) - 1 AS place FROM event_endpoints) e"
    " ON e.place = told.number % :endpoints"
)
LAGS = text(
    "SELECT percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - created_at))"
    " FROM deliveries JOIN app_events ON number = event_number WHERE state = 'done'"
)


@pytest.mark.soak
def test_the_others_are_told_in_time(
    environment: dict[str, str], shop: Shop, listening: Callable[..., str], endpoint: Receiver
) -> None:
    hangs = listening("/hangs", "hang")
    shop.db.execute(
        text(
            "INSERT INTO event_endpoints (id, app_id, url) SELECT gen_random_uuid(), 'shop', :url || n"
            " FROM generate_series(2, :count) n"
        ),
        {"url": f"{endpoint.url}/", "count": ENDPOINTS},
    )
    for row in shop.db.execute(text("SELECT id FROM event_endpoints")).all():
        shop.store_secret(row.id)
    left = text("SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'sending') AND endpoint_id <> :hangs")
    with ExitStack() as workers:
        for _ in range(WORKERS):
            settings = environment | {"KEY_CACHE_SECONDS": "60"}
            worker = workers.enter_context(Command.start("worker", environment=settings))
            worker.wait_until(worker.logged, what="the worker")
        began_at, pace = time.monotonic(), threading.Event()
        for second in range(SECONDS):
            shop.db.execute(WRITE, {"count": EVENTS_A_SECOND, "endpoints": ENDPOINTS})
            pace.wait(max(0.0, began_at + second + 1 - time.monotonic()))
        wait_until(
            lambda: shop.db.execute(left, {"hangs": hangs}).scalar_one() == 0,
            seconds=amount(60, 900),
            what="the others",
        )
    half, most, longest = (float(lag) for lag in shop.db.execute(LAGS).scalar_one())
    print(f"{EVENTS_A_SECOND}/s for {SECONDS} s, {ENDPOINTS} endpoints, {WORKERS} workers: lag of the others", end=" ")
    print(f"half {half:.2f} s, 95 of 100 {most:.2f} s, longest {longest:.2f} s")
    assert longest < MOST_LAG_SECONDS
