"""payments and their events.

Revision: 0001
After: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_cursors",
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("reconciled_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=False),
        sa.Column("lease_until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("app_id", name=op.f("pk_event_cursors")),
    )
    op.create_table(
        "payments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("org_id", sa.String(length=200), nullable=True),
        sa.Column("run_id", sa.String(length=200), nullable=True),
        sa.Column("parent_run_id", sa.String(length=200), nullable=True),
        sa.Column("brand_id", sa.String(length=200), nullable=True),
        sa.Column("campaign_id", sa.String(length=200), nullable=True),
        sa.Column("step", sa.String(length=10), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("lease_token", sa.Uuid(), nullable=False),
        sa.Column("lease_until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("recovery_tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("recover_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("run_search_from", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("run_search_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("stripe_params", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("asked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("asked_anew", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("answer_status", sa.SmallInteger(), nullable=True),
        sa.Column("answer", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("created_as", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("stripe_payment_intent_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_checkout_session_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_subscription_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_invoice_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_charge_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_customer_id", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=30), server_default="creating", nullable=False),
        sa.Column("amount_in_cents", sa.BigInteger(), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("amount_received_in_cents", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount_refunded_in_cents", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount_disputed_in_cents", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("success_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failure_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("refund_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("dispute_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("tracking_state", sa.String(length=10), nullable=False),
        sa.Column("tracking_error", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('checkout_session', 'payment_intent')", name=op.f("ck_payments_known_kind")),
        sa.CheckConstraint(
            "status IN ('creating', 'rejected', 'checkout_created', 'requires_payment_method', 'requires_confirmation', 'requires_action', 'processing', 'requires_capture', 'pending', 'succeeded', 'failed', 'canceled', 'expired', 'partially_refunded', 'refunded', 'disputed')",
            name=op.f("ck_payments_known_status"),
        ),
        sa.CheckConstraint(
            "step <> 'asked' OR (asked_at IS NOT NULL AND stripe_params IS NOT NULL)",
            name=op.f("ck_payments_asked_is_stamped"),
        ),
        sa.CheckConstraint(
            "step IN ('accepted', 'asked') OR status = 'rejected' OR coalesce(stripe_payment_intent_id, stripe_checkout_session_id) IS NOT NULL",
            name=op.f("ck_payments_taken_has_stripe_object"),
        ),
        sa.CheckConstraint("step IN ('accepted', 'asked', 'taken', 'finished')", name=op.f("ck_payments_known_step")),
        sa.CheckConstraint(
            "tracking_state IN ('none', 'pending', 'complete', 'failed', 'stuck')",
            name=op.f("ck_payments_known_tracking_state"),
        ),
        sa.CheckConstraint("(answer_status IS NULL) = (answer IS NULL)", name=op.f("ck_payments_answer_is_whole")),
        sa.CheckConstraint(
            "amount_received_in_cents >= 0 AND amount_refunded_in_cents >= 0 AND amount_disputed_in_cents >= 0",
            name=op.f("ck_payments_no_negative_amount"),
        ),
        sa.CheckConstraint("attempt > 0", name=op.f("ck_payments_attempt_counts_from_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
    )
    op.create_index(
        "ix_payments_app_id_open",
        "payments",
        ["app_id", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text(
            "step IN ('taken', 'finished') AND status IN ('checkout_created', 'requires_payment_method', 'requires_confirmation', 'requires_action', 'processing', 'requires_capture', 'pending', 'failed')"
        ),
    )
    op.create_index(
        "ix_payments_app_id_statistics",
        "payments",
        ["app_id"],
        unique=False,
        postgresql_include=[
            "status",
            "currency",
            "amount_in_cents",
            "amount_received_in_cents",
            "amount_refunded_in_cents",
            "amount_disputed_in_cents",
            "success_count",
            "failure_count",
            "refund_count",
            "dispute_count",
        ],
    )
    op.create_index(
        "ix_payments_brand_id", "payments", ["brand_id"], unique=False, postgresql_where=sa.text("brand_id IS NOT NULL")
    )
    op.create_index(
        "ix_payments_campaign_id",
        "payments",
        ["campaign_id"],
        unique=False,
        postgresql_where=sa.text("campaign_id IS NOT NULL"),
    )
    op.create_index(
        "ix_payments_lease_until",
        "payments",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("step <> 'finished'"),
    )
    op.create_index(
        "ix_payments_org_id_created_at",
        "payments",
        ["org_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_payments_parent_run_id_created_at",
        "payments",
        ["parent_run_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_payments_run_id_created_at",
        "payments",
        ["run_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_payments_run_search_until",
        "payments",
        ["run_search_until"],
        unique=False,
        postgresql_where=sa.text("run_search_until IS NOT NULL"),
    )
    op.create_index(
        "ix_payments_stripe_charge_id",
        "payments",
        ["stripe_charge_id"],
        unique=False,
        postgresql_where=sa.text("stripe_charge_id IS NOT NULL"),
    )
    op.create_index(
        "ix_payments_stripe_invoice_id",
        "payments",
        ["stripe_invoice_id"],
        unique=False,
        postgresql_where=sa.text("stripe_invoice_id IS NOT NULL"),
    )
    op.create_index(
        "ix_payments_stripe_subscription_id",
        "payments",
        ["stripe_subscription_id"],
        unique=False,
        postgresql_where=sa.text("stripe_subscription_id IS NOT NULL"),
    )
    op.create_index(
        "uq_payments_app_id_idempotency_key",
        "payments",
        ["app_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "uq_payments_stripe_checkout_session_id",
        "payments",
        ["stripe_checkout_session_id"],
        unique=True,
        postgresql_where=sa.text("stripe_checkout_session_id IS NOT NULL"),
    )
    op.create_index(
        "uq_payments_stripe_payment_intent_id",
        "payments",
        ["stripe_payment_intent_id"],
        unique=True,
        postgresql_where=sa.text("stripe_payment_intent_id IS NOT NULL"),
    )
    op.create_table(
        "stripe_events",
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False, comment="Stripe's, in seconds since 1970"),
        sa.Column("object", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("refs", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("received_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_stripe_events_payment_id_payments")),
        sa.PrimaryKeyConstraint("app_id", "id", name=op.f("pk_stripe_events")),
    )
    op.create_index(
        "ix_stripe_events_payment_id",
        "stripe_events",
        ["payment_id"],
        unique=False,
        postgresql_where=sa.text("payment_id IS NOT NULL"),
    )
    op.create_index("ix_stripe_events_received_at", "stripe_events", ["received_at"], unique=False)
    op.create_index(
        "ix_stripe_events_refs",
        "stripe_events",
        ["refs"],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("payment_id IS NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_stripe_events_refs",
        table_name="stripe_events",
        postgresql_using="gin",
        postgresql_where=sa.text("payment_id IS NULL"),
    )
    op.drop_index("ix_stripe_events_received_at", table_name="stripe_events")
    op.drop_index(
        "ix_stripe_events_payment_id", table_name="stripe_events", postgresql_where=sa.text("payment_id IS NOT NULL")
    )
    op.drop_table("stripe_events")
    op.drop_index(
        "uq_payments_stripe_payment_intent_id",
        table_name="payments",
        postgresql_where=sa.text("stripe_payment_intent_id IS NOT NULL"),
    )
    op.drop_index(
        "uq_payments_stripe_checkout_session_id",
        table_name="payments",
        postgresql_where=sa.text("stripe_checkout_session_id IS NOT NULL"),
    )
    op.drop_index(
        "uq_payments_app_id_idempotency_key",
        table_name="payments",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.drop_index(
        "ix_payments_stripe_subscription_id",
        table_name="payments",
        postgresql_where=sa.text("stripe_subscription_id IS NOT NULL"),
    )
    op.drop_index(
        "ix_payments_stripe_invoice_id",
        table_name="payments",
        postgresql_where=sa.text("stripe_invoice_id IS NOT NULL"),
    )
    op.drop_index(
        "ix_payments_stripe_charge_id", table_name="payments", postgresql_where=sa.text("stripe_charge_id IS NOT NULL")
    )
    op.drop_index(
        "ix_payments_run_search_until", table_name="payments", postgresql_where=sa.text("run_search_until IS NOT NULL")
    )
    op.drop_index("ix_payments_run_id_created_at", table_name="payments")
    op.drop_index("ix_payments_parent_run_id_created_at", table_name="payments")
    op.drop_index("ix_payments_org_id_created_at", table_name="payments")
    op.drop_index("ix_payments_lease_until", table_name="payments", postgresql_where=sa.text("step <> 'finished'"))
    op.drop_index("ix_payments_campaign_id", table_name="payments", postgresql_where=sa.text("campaign_id IS NOT NULL"))
    op.drop_index("ix_payments_brand_id", table_name="payments", postgresql_where=sa.text("brand_id IS NOT NULL"))
    op.drop_index(
        "ix_payments_app_id_statistics",
        table_name="payments",
        postgresql_include=[
            "status",
            "currency",
            "amount_in_cents",
            "amount_received_in_cents",
            "amount_refunded_in_cents",
            "amount_disputed_in_cents",
            "success_count",
            "failure_count",
            "refund_count",
            "dispute_count",
        ],
    )
    op.drop_index(
        "ix_payments_app_id_open",
        table_name="payments",
        postgresql_where=sa.text(
            "step IN ('taken', 'finished') AND status IN ('checkout_created', 'requires_payment_method', 'requires_confirmation', 'requires_action', 'processing', 'requires_capture', 'pending', 'failed')"
        ),
    )
    op.drop_table("payments")
    op.drop_table("event_cursors")
