"""money movements: when the money of each payment moved, for statistics by time.

Revision: 0008
After: 0007

The version before runs beside this: it leaves the new table and column as they are. What moved before, and what that
version folds meanwhile, is written by `flask events replay --all` once it is gone: until then periods say less, and
nothing else does. The index of an app's statistics is made anew with the time in it, while others write.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

AMOUNTS = ["amount_in_cents", "amount_received_in_cents", "amount_refunded_in_cents", "amount_disputed_in_cents"]
COUNTS = ["success_count", "failure_count", "refund_count", "dispute_count"]
STATISTICS = ["status", "currency", *AMOUNTS, *COUNTS]
BEFORE, NOW = "ix_payments_app_id_statistics", "ix_payments_app_id_created_at_statistics"


def upgrade() -> None:
    op.add_column("payments", sa.Column("movements_digest", sa.String(length=16), nullable=True))
    op.create_table(
        "money_movements",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("org_id", sa.String(length=200), nullable=True),
        sa.Column("occurred_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("amount_in_cents", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.CheckConstraint("kind IN ('received', 'refunded', 'disputed')", name=op.f("ck_money_movements_known_kind")),
        sa.CheckConstraint("amount_in_cents > 0", name=op.f("ck_money_movements_moves_something")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_money_movements_payment_id_payments")),
        sa.PrimaryKeyConstraint("payment_id", "number", name=op.f("pk_money_movements")),
    )
    for column, others, rows in (("app_id", [], None), ("org_id", ["app_id"], "org_id IS NOT NULL")):
        op.create_index(
            f"ix_money_movements_{column}_occurred_at",
            "money_movements",
            [column, "occurred_at"],
            postgresql_include=[*others, "currency", "kind", "amount_in_cents"],
            postgresql_where=rows and sa.text(rows),
        )
    _replace_index(BEFORE, NOW, ["app_id", "created_at"])


def downgrade() -> None:
    _replace_index(NOW, BEFORE, ["app_id"])
    op.drop_table("money_movements")
    op.drop_column("payments", "movements_digest")


def _replace_index(before: str, now: str, columns: list[str]) -> None:
    with op.get_context().autocommit_block():
        # One that was left half made is of no use, and in the way.
        op.drop_index(now, table_name="payments", if_exists=True, postgresql_concurrently=True)
        op.create_index(now, "payments", columns, postgresql_include=STATISTICS, postgresql_concurrently=True)
        op.drop_index(before, table_name="payments", if_exists=True, postgresql_concurrently=True)
