"""app events: what apps are told of their payments, where, and how far each is on its way.

Revision: 0011
After: 0010

The version before runs beside this: what it folds meanwhile is told to nobody. No app can have an endpoint before this
version runs; let them make one once the version before is gone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TYPES = (
    *("payment.created", "payment.processing", "payment.requires_action", "payment.requires_capture"),
    *("payment.succeeded", "payment.failed", "payment.canceled", "payment.expired", "payment.refunded"),
    *("payment.refund_failed", "payment.disputed", "payment.dispute_closed", "subscription.started"),
    *("subscription.trial_ending", "subscription.renewed", "subscription.past_due", "subscription.changed"),
    *("subscription.ended", "payment_method.saved", "payment_method.removed", "ping"),
)
KNOWN_TYPE = f"type IN ({', '.join(map(repr, TYPES))})"
IS_ABOUT_ONE_THING = (
    "num_nonnulls(payment_id, subscription_id) <= 1"
    " AND (state_number IS NULL) = (num_nonnulls(payment_id, subscription_id) = 0)"
)
UNDELIVERED = "state IN ('waiting', 'sending')"
TIME = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    for name in ("refund_statuses", "dispute_statuses"):
        op.add_column(
            "payments", sa.Column(name, postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False)
        )
    op.add_column("payments", sa.Column("state_number", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "app_events",
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("subscription_id", sa.Text(), nullable=True),
        sa.Column("state_number", sa.BigInteger(), nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint(KNOWN_TYPE, name=op.f("ck_app_events_known_type")),
        sa.CheckConstraint(IS_ABOUT_ONE_THING, name=op.f("ck_app_events_is_about_one_thing")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_app_events_payment_id_payments")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_app_events")),
        sa.UniqueConstraint("id", name=op.f("uq_app_events_id")),
    )
    op.create_index("ix_app_events_app_id", "app_events", ["app_id", "number"])
    for column in ("payment_id", "subscription_id"):
        op.create_index(
            f"uq_app_events_{column}_state_number",
            "app_events",
            [column, "state_number", "type"],
            unique=True,
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )
    op.create_table(
        "event_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("types", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("disabled_at", TIME, nullable=True),
        sa.Column("failing_since", TIME, nullable=True),
        sa.Column("paused_until", TIME, nullable=True),
        sa.Column("concurrency", sa.SmallInteger(), server_default=sa.text("4"), nullable=False),
        sa.Column("old_secret_until", TIME, nullable=True),
        sa.Column("succeeded_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("concurrency > 0", name=op.f("ck_event_endpoints_some_concurrency")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_endpoints")),
    )
    op.create_index("ix_event_endpoints_app_id", "event_endpoints", ["app_id"])
    op.create_table(
        "deliveries",
        sa.Column("event_number", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=10), server_default="waiting", nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", TIME, server_default=NOW, nullable=False),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("last_status", sa.SmallInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'sending', 'done', 'dead')", name=op.f("ck_deliveries_known_state")),
        sa.CheckConstraint(
            "(state IN ('done', 'dead')) = (ended_at IS NOT NULL)", name=op.f("ck_deliveries_ended_is_stamped")
        ),
        sa.CheckConstraint(
            "state <> 'sending' OR lease_token IS NOT NULL", name=op.f("ck_deliveries_sending_has_lease")
        ),
        sa.ForeignKeyConstraint(
            ["event_number"],
            ["app_events.number"],
            name=op.f("fk_deliveries_event_number_app_events"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["event_endpoints.id"],
            name=op.f("fk_deliveries_endpoint_id_event_endpoints"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_number", "endpoint_id", name=op.f("pk_deliveries")),
    )
    for name, columns, rows in (
        ("next", ["endpoint_id", "next_attempt_at"], UNDELIVERED),
        ("subject", ["endpoint_id", "subject", "event_number"], UNDELIVERED),
        ("dead", ["endpoint_id", "ended_at"], "state = 'dead'"),
    ):
        op.create_index(f"ix_deliveries_{name}", "deliveries", columns, postgresql_where=sa.text(rows))


def downgrade() -> None:
    for table in ("deliveries", "event_endpoints", "app_events"):
        op.drop_table(table)
    for name in ("state_number", "dispute_statuses", "refund_statuses"):
        op.drop_column("payments", name)
