"""actions: what is done with a payment, when its money is taken, and what of it is lost.

Revision: 0005
After: 0004

The version before runs beside this: it fills none of the new columns, of which each has a default. Its worker doesn't
know the new kinds of operation, and stumbles over one that was left: end it before callers refund. What it folds
meanwhile, and what was lost in disputes before, is set by `flask events replay --all` once it is gone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

AMOUNTS = "amount_received_in_cents >= 0 AND amount_refunded_in_cents >= 0 AND amount_disputed_in_cents >= 0"
KINDS = "'checkout_session', 'payment_intent'"
# Of each constraint: its table, its name, what it says now, and what it said before.
CHECKS = (
    ("payments", "no_negative_amount", f"{AMOUNTS} AND amount_lost_in_cents >= 0", AMOUNTS),
    ("payments", "known_capture_method", "capture_method IN ('automatic', 'manual')", None),
    ("operations", "known_kind", f"kind IN ({KINDS}, 'refund', 'capture', 'cancel')", f"kind IN ({KINDS})"),
)
# Of each index: its name, its table, its expression, and which rows it holds.
INDEXES = (
    ("ix_operations_payment_id_actions", "operations", "payment_id", "id <> payment_id"),
    ("ix_stripe_events_own_id", "stripe_events", "(refs[1])", "payment_id IS NOT NULL"),
)


def upgrade() -> None:
    op.add_column(
        "payments", sa.Column("capture_method", sa.String(length=10), server_default="automatic", nullable=False)
    )
    op.add_column(
        "payments", sa.Column("amount_lost_in_cents", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    for table, name, now, before in CHECKS:
        if before is not None:
            op.drop_constraint(name, table, type_="check")
        # Rows that are there are looked at below, while others write.
        op.create_check_constraint(name, table, now, postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        for table, name, _, _ in CHECKS:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_{name}")
        for name, table, expression, rows in INDEXES:
            # One that was left half made is of no use, and in the way.
            op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name, table, [sa.text(expression)], postgresql_where=sa.text(rows), postgresql_concurrently=True
            )


def downgrade() -> None:
    for name, table, _, _ in INDEXES:
        op.drop_index(name, table_name=table)
    for table, name, _, before in CHECKS:
        op.drop_constraint(name, table, type_="check")
        if before is not None:
            op.create_check_constraint(name, table, before)
    op.drop_column("payments", "amount_lost_in_cents")
    op.drop_column("payments", "capture_method")
