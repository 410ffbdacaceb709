"""Payments and events in any number, made by the database itself from their numbers.

A tenth of the payments are one organisation's, exactly a thousand another's; the rest are spread over a thousand.
Each organisation's are strewn over the whole table, as they are when they come in one by one.
"""

import hashlib
import uuid

import orjson
from sqlalchemy import Connection, text

from tests.bench.upstreams import FIXTURES

ORG_OF_1000 = "org_of_1000"
ORG_OF_A_TENTH = "org_of_a_tenth"
ORG_OF_THE_UNPAID = "org_of_the_unpaid"
EVENTS_OF_PAYMENT = 3
# A prime, so that multiplying by it, modulo the number of payments, gives each payment a place of its own.
STRIDE = 7919

# As the service leaves them when it has created them, and an event has paid them.
_PAYMENTS = text("""
    INSERT INTO payments (
        id, kind, app_id, created_at, updated_at, org_id, run_id, parent_run_id, brand_id, campaign_id,
        stripe_payment_intent_id, stripe_charge_id, status, amount_in_cents, currency, description, metadata,
        amount_received_in_cents, success_count
    )
    SELECT
        id, 'payment_intent', app_id, made_at, made_at, org_id, md5('run ' || number)::uuid,
        CASE WHEN number % 3 = 0 THEN md5('caller ' || number / 3)::uuid END,
        'brand_' || number % 500, 'campaign_' || number % 2000,
        'pi_bench_' || number, CASE WHEN :paid THEN 'ch_bench_' || number END,
        CASE WHEN :paid THEN 'succeeded' ELSE 'requires_payment_method' END, amount, currency, 'Order ' || number,
        jsonb_build_object('orderId', number::text),
        CASE WHEN :paid THEN amount ELSE 0 END, CASE WHEN :paid THEN 1 ELSE 0 END
    FROM (
        SELECT
            number, md5('payment ' || number)::uuid AS id, 'app_' || number % :apps AS app_id,
            CASE
                WHEN NOT :paid THEN :org_of_the_unpaid
                WHEN number * :stride % :payments < 1000 THEN :org_of_1000
                WHEN number * :stride % :payments < 1000 + :payments / 10 THEN :org_of_a_tenth
                ELSE 'org_' || number % 997
            END AS org_id,
            500 + number % 50000 AS amount, (ARRAY['usd', 'usd', 'usd', 'eur', 'gbp'])[1 + number % 5] AS currency,
            now() - (:payments - number) * interval '20 seconds' AS made_at
        FROM generate_series(CAST(:first AS bigint), :first + :payments - 1) AS number
    ) AS numbered
""")

# What goes with each payment: the operation that created it, what Stripe answered, and what Stripe calls it.
_OPERATIONS = text("""
    INSERT INTO operations (
        id, app_id, kind, payment_id, created_at, request_hash, request, step, lease_token, stripe_params, asked_at,
        answer_status, answer, run_id, tracking_state
    )
    SELECT
        id, app_id, kind, id, created_at, sha256(id::text::bytea),
        jsonb_build_object('app_id', app_id, 'org_id', org_id, 'amount_in_cents', amount_in_cents, 'currency', currency,
                           'description', description, 'metadata', metadata),
        'finished', gen_random_uuid(),
        convert_to(json_build_object('amount', amount_in_cents, 'currency', currency, 'description', description,
                                     'automatic_payment_methods', json_build_object('enabled', true),
                                     'metadata', metadata || jsonb_build_object('paymentId', id, 'appId', app_id)
                                     )::text, 'UTF8'),
        created_at, 200,
        json_build_object('success', true, 'payment_id', id, 'payment_intent_id', stripe_payment_intent_id,
                          'status', 'requires_payment_method'),
        run_id, 'complete'
    FROM payments WHERE (status = 'succeeded') = :paid
""")
_ANSWERS = text("""
    INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs, received_at)
    SELECT
        app_id, concat('op_', id, chr(58), 1), id, 'payment_intent.created', extract(epoch FROM created_at)::bigint,
        CAST(:made AS jsonb) || jsonb_build_object('id', stripe_payment_intent_id, 'amount', amount_in_cents,
                                                   'currency', currency, 'status', 'requires_payment_method'),
        ARRAY[stripe_payment_intent_id], created_at
    FROM payments WHERE (status = 'succeeded') = :paid
""")
_OBJECTS = text("""
    INSERT INTO stripe_objects (id, app_id, payment_id)
    SELECT known.id, app_id, payments.id
    FROM payments CROSS JOIN LATERAL unnest(ARRAY[stripe_payment_intent_id, stripe_charge_id]) AS known (id)
    WHERE known.id IS NOT NULL AND (status = 'succeeded') = :paid
""")

# What the fold writes beside a payment that is paid.
_MOVEMENTS = text("""
    INSERT INTO money_movements (payment_id, number, app_id, org_id, occurred_at, kind, amount_in_cents, currency)
    SELECT id, 1, app_id, org_id, created_at + interval '1 second', 'received', amount_in_cents, currency
    FROM payments WHERE status = 'succeeded' AND :paid
""")

_EVENTS = text("""
    INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs, received_at)
    SELECT
        app_id, 'evt_bench_' || told.type || '_' || stripe_payment_intent_id, payments.id, told.type,
        extract(epoch FROM created_at)::bigint + told.later,
        told.object || jsonb_build_object('currency', currency, 'amount', amount_in_cents) || CASE told.later
            WHEN 2 THEN jsonb_build_object('id', stripe_charge_id, 'payment_intent', stripe_payment_intent_id)
            ELSE jsonb_build_object('id', stripe_payment_intent_id, 'amount_received', amount_in_cents * told.later)
        END,
        CASE told.later WHEN 2 THEN ARRAY[stripe_charge_id, stripe_payment_intent_id]
            ELSE ARRAY[stripe_payment_intent_id] END,
        created_at + told.later * interval '1 second'
    FROM payments CROSS JOIN (VALUES
        (0, 'payment_intent.created', CAST(:created AS jsonb)),
        (1, 'payment_intent.succeeded', CAST(:succeeded AS jsonb)),
        (2, 'charge.succeeded', CAST(:charged AS jsonb))
    ) AS told (later, type, object)
    WHERE payments.status = 'succeeded'
""")


def payment_id(number: int) -> uuid.UUID:
    """The id of a payment."""
    return uuid.UUID(hashlib.md5(f"payment {number}".encode(), usedforsecurity=False).hexdigest())


def add_paid(connection: Connection, payments: int, *, apps: int = 20) -> None:
    """Make the payments 1 to `payments`, without their events."""
    _add(connection, first=1, payments=payments, apps=apps, paid=True)


def add_unpaid(connection: Connection, first: int, payments: int) -> None:
    """Make so many payments from the number `first` on, whose events are still to come."""
    _add(connection, first=first, payments=payments, apps=20, paid=False)


def add_events(connection: Connection) -> None:
    """Make the three events of each payment that is paid."""
    intent, charge = FIXTURES["payment_intent"] | {"next_action": None}, FIXTURES["charge"] | {"status": "succeeded"}
    objects = {"created": intent, "succeeded": intent | {"status": "succeeded"}, "charged": charge}
    connection.execute(_EVENTS, {name: orjson.dumps(shape).decode() for name, shape in objects.items()})


def vacuum(connection: Connection) -> None:
    """Bring statistics and visibility up to date, as autovacuum does in time."""
    for table in ("payments", "operations", "stripe_objects", "stripe_events", "money_movements"):
        connection.execute(text(f"VACUUM (ANALYZE) {table}"))


def _add(connection: Connection, *, first: int, payments: int, apps: int, paid: bool) -> None:
    orgs = {"org_of_1000": ORG_OF_1000, "org_of_a_tenth": ORG_OF_A_TENTH, "org_of_the_unpaid": ORG_OF_THE_UNPAID}
    values = {"first": first, "payments": payments, "apps": apps, "paid": paid, "stride": STRIDE}
    connection.execute(_PAYMENTS, orgs | values)
    made = orjson.dumps(FIXTURES["payment_intent"] | {"next_action": None}).decode()
    connection.execute(_OPERATIONS, {"paid": paid})
    connection.execute(_ANSWERS, {"paid": paid, "made": made})
    connection.execute(_OBJECTS, {"paid": paid})
    connection.execute(_MOVEMENTS, {"paid": paid})
