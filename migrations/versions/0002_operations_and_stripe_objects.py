"""operations and stripe objects, taken out of payments.

Revision: 0002
After: 0001

The version before does not run beside this: it walks on the payments' rows, whose columns for that move to operations.
Stop it first. What it had begun is moved as it stands, and is recovered by the version after. Where it was not stopped,
its requests fail with a 500 before anything is asked of anybody, and Stripe delivers the webhooks again that it refused.

What a payment's creation said becomes a fact beside its events. The time of such a fact is 0, earlier than all events.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RUNS_BESIDE_PREVIOUS = False

MOVE_OPERATIONS = """
    INSERT INTO operations (
        id, app_id, kind, payment_id, created_at, idempotency_key, request_hash, request, step, attempt, lease_token,
        lease_until, recovery_tries, recover_at, stripe_params, asked_at, asked_anew, answer_status, answer, run_id,
        tracking_state, tracking_error, run_search_from, run_search_until
    )
    SELECT
        id, app_id, kind, id, created_at, idempotency_key, request_hash, request, step, attempt, lease_token,
        CASE WHEN step <> 'finished' THEN lease_until END, recovery_tries, recover_at,
        convert_to(stripe_params::text, 'UTF8'), asked_at, asked_anew, answer_status, answer, run_id,
        tracking_state, tracking_error, run_search_from, run_search_until
    FROM payments
"""

MOVE_CREATIONS = """
    INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs)
    SELECT
        app_id, 'op_' || id || ':' || attempt, id,
        CASE kind WHEN 'payment_intent' THEN 'payment_intent.created' ELSE 'checkout.session.created' END, 0,
        CASE kind
            WHEN 'payment_intent' THEN jsonb_build_object(
                'object', 'payment_intent',
                'id', created_as->'payment_intent_id',
                'status', created_as->'status',
                'amount', created_as->'amount_in_cents',
                'currency', created_as->'currency',
                'customer', created_as->'customer_id')
            ELSE jsonb_build_object(
                'object', 'checkout.session',
                'id', created_as->'checkout_session_id',
                'payment_intent', created_as->'payment_intent_id',
                'subscription', created_as->'subscription_id',
                'amount_total', created_as->'amount_in_cents',
                'currency', created_as->'currency',
                'customer', created_as->'customer_id')
        END,
        ARRAY[coalesce(created_as->>'checkout_session_id', created_as->>'payment_intent_id')]
    FROM payments
    WHERE created_as IS NOT NULL AND step IN ('taken', 'finished') AND status <> 'rejected'
"""

# An object that several payments named is the first one's, as it was for a new event.
MOVE_IDS = """
    INSERT INTO stripe_objects (id, app_id, payment_id)
    SELECT known.id, app_id, payments.id
    FROM payments CROSS JOIN LATERAL unnest(ARRAY[
        stripe_payment_intent_id, stripe_checkout_session_id, stripe_subscription_id, stripe_invoice_id,
        stripe_charge_id
    ]) AS known (id)
    WHERE known.id IS NOT NULL
    ORDER BY payments.id
    ON CONFLICT DO NOTHING
"""

MOVED_COLUMNS = (
    "idempotency_key", "request_hash", "request", "step", "attempt", "lease_token", "lease_until", "recovery_tries",
    "recover_at", "run_search_from", "run_search_until", "stripe_params", "asked_at", "asked_anew", "answer_status",
    "answer", "created_as", "tracking_state", "tracking_error",
)  # fmt: skip
# An index or a check that needs a moved column goes with it; these would stay.
NEEDLESS_INDEXES = (
    "ix_payments_app_id_open",
    "ix_payments_org_id_created_at",
    "ix_payments_run_id_created_at",
    "ix_payments_parent_run_id_created_at",
    "ix_payments_stripe_charge_id",
    "ix_payments_stripe_invoice_id",
    "ix_payments_stripe_subscription_id",
    "uq_payments_stripe_checkout_session_id",
    "uq_payments_stripe_payment_intent_id",
)


def upgrade() -> None:
    op.execute("LOCK TABLE payments, stripe_events IN ACCESS EXCLUSIVE MODE")
    _create_operations()
    op.create_table(
        "stripe_objects",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_stripe_objects_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stripe_objects")),
    )
    op.add_column("stripe_events", sa.Column("previous", postgresql.JSONB(none_as_null=True), nullable=True))
    for statement in (MOVE_OPERATIONS, MOVE_CREATIONS, MOVE_IDS):
        op.execute(statement)
    _reduce_payments()


def _create_operations() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("request", postgresql.JSONB(), nullable=False),
        sa.Column("step", sa.String(length=10), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("lease_token", sa.Uuid(), nullable=False),
        sa.Column("lease_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("recovery_tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("recover_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("stripe_params", postgresql.BYTEA(), nullable=True),
        sa.Column("asked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("asked_anew", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("answer_status", sa.SmallInteger(), nullable=True),
        sa.Column("answer", postgresql.JSON(), nullable=True),
        sa.Column("run_id", sa.String(length=200), nullable=True),
        sa.Column("tracking_state", sa.String(length=10), nullable=False),
        sa.Column("tracking_error", sa.Text(), nullable=True),
        sa.Column("run_search_from", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("run_search_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('checkout_session', 'payment_intent')", name=op.f("ck_operations_known_kind")),
        sa.CheckConstraint("step IN ('accepted', 'asked', 'taken', 'finished')", name=op.f("ck_operations_known_step")),
        sa.CheckConstraint(
            "tracking_state IN ('none', 'pending', 'complete', 'failed', 'stuck')",
            name=op.f("ck_operations_known_tracking_state"),
        ),
        sa.CheckConstraint("attempt > 0", name=op.f("ck_operations_attempt_counts_from_one")),
        sa.CheckConstraint("(answer_status IS NULL) = (answer IS NULL)", name=op.f("ck_operations_answer_is_whole")),
        sa.CheckConstraint(
            "step <> 'asked' OR (asked_at IS NOT NULL AND stripe_params IS NOT NULL)",
            name=op.f("ck_operations_asked_is_stamped"),
        ),
        sa.CheckConstraint(
            "(step = 'finished') = (lease_until IS NULL)", name=op.f("ck_operations_unfinished_has_lease")
        ),
        sa.ForeignKeyConstraint(
            ["payment_id"],
            ["payments.id"],
            name=op.f("fk_operations_payment_id_payments"),
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
    )
    op.create_index(
        "uq_operations_app_id_idempotency_key",
        "operations",
        ["app_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    for column in ("lease_until", "run_search_until"):
        op.create_index(
            f"ix_operations_{column}", "operations", [column], postgresql_where=sa.text(f"{column} IS NOT NULL")
        )


def _reduce_payments() -> None:
    for index in NEEDLESS_INDEXES:
        op.drop_index(index, table_name="payments")
    for column in MOVED_COLUMNS:
        op.drop_column("payments", column)
    op.create_check_constraint(
        "taken_has_stripe_object",
        "payments",
        "status IN ('creating', 'rejected')"
        " OR coalesce(stripe_payment_intent_id, stripe_checkout_session_id) IS NOT NULL",
    )
    op.create_index(
        "ix_payments_app_id_open",
        "payments",
        ["app_id", "created_at", "id"],
        postgresql_where=sa.text(
            "status IN ('checkout_created', 'requires_payment_method', 'requires_confirmation', 'requires_action',"
            " 'processing', 'requires_capture', 'pending', 'failed')"
        ),
    )
    for column in ("org_id", "run_id", "parent_run_id"):
        op.create_index(
            f"ix_payments_{column}_created_at_id",
            "payments",
            [column, sa.text("created_at DESC"), sa.text("id DESC")],
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )


def downgrade() -> None:
    raise RuntimeError(
        "What operations hold by now has no place in revision 0001: restore the backup made before 0002."
    )
