"""subscriptions: what each has become, their renewals as payments, and what callers have done with them.

Revision: 0010
After: 0009

The version before runs beside this. It knows no renewals: what Stripe tells it of one it answers with 500, and Stripe tells
again. Its worker leaves the new kinds of operation alone. Subscriptions that began before are taken up by
`flask events replay --all` once it is gone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

KINDS = "'checkout_session', 'payment_intent'"
ACTIONS = f"{KINDS}, 'refund', 'capture', 'cancel'"
TAKEN = "status IN ('creating', 'rejected') OR coalesce(stripe_payment_intent_id, stripe_checkout_session_id"
# Of each constraint: its table, its name, what it says now, and what it said before.
CHECKS = (
    ("payments", "known_kind", f"kind IN ({KINDS}, 'renewal')", f"kind IN ({KINDS})"),
    ("payments", "taken_has_stripe_object", f"{TAKEN}, stripe_invoice_id) IS NOT NULL", f"{TAKEN}) IS NOT NULL"),
    (
        "operations",
        "known_kind",
        f"kind IN ({ACTIONS}, 'cancel_subscription', 'resume_subscription', 'change_subscription')",
        f"kind IN ({ACTIONS})",
    ),
)


def upgrade() -> None:
    time = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "subscriptions",
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.String(length=200), nullable=True),
        sa.Column("status", sa.String(length=30), nullable=True),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("items", postgresql.JSONB(none_as_null=True), nullable=True),
        *(sa.Column(name, time, nullable=True) for name in ("current_period_start", "current_period_end", "cancel_at")),
        sa.Column("cancel_at_period_end", sa.Boolean(), nullable=True),
        *(sa.Column(name, time, nullable=True) for name in ("canceled_at", "ended_at", "trial_end", "created_at")),
        sa.Column("is_trial_ending", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state_number", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("recheck_at", time, nullable=True),
        sa.CheckConstraint(
            "status IS NOT NULL OR recheck_at IS NOT NULL", name=op.f("ck_subscriptions_unknown_is_asked_for")
        ),
        sa.CheckConstraint("(status IS NULL) = (created_at IS NULL)", name=op.f("ck_subscriptions_state_is_whole")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_subscriptions_payment_id_payments")),
        sa.PrimaryKeyConstraint("app_id", "id", name=op.f("pk_subscriptions")),
    )
    op.create_index(
        "ix_subscriptions_org_id_created_at_id",
        "subscriptions",
        [sa.text("org_id"), sa.text("created_at DESC"), sa.text("id DESC")],
        postgresql_where=sa.text("org_id IS NOT NULL"),
    )
    op.create_index(
        "ix_subscriptions_recheck_at",
        "subscriptions",
        ["recheck_at"],
        postgresql_where=sa.text("recheck_at IS NOT NULL"),
    )
    for table, name, now, _ in CHECKS:
        op.drop_constraint(name, table, type_="check")
        # Rows that are there are looked at below, while others write.
        op.create_check_constraint(name, table, now, postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        for table, name, _, _ in CHECKS:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_{name}")


def downgrade() -> None:
    op.drop_table("subscriptions")
    for table, name, _, before in CHECKS:
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, before)
