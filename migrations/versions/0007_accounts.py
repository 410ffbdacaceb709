"""accounts: which apps share a Stripe account, and in which version of Stripe's API an event was told.

Revision: 0007
After: 0006

The version before runs beside this: to it an event that came by an app's path is that app's alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    time = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.String(length=255), nullable=False),
        sa.Column("lease_token", sa.Uuid(), nullable=False),
        sa.Column("lease_until", time, nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_accounts")),
    )
    op.create_table(
        "app_accounts",
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("account_id", sa.String(length=255), nullable=False),
        sa.Column("leads", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("has_moved", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("checked_at", time, nullable=True),
        sa.CheckConstraint("NOT (leads AND has_moved)", name=op.f("ck_app_accounts_lead_has_own_secrets")),
        sa.PrimaryKeyConstraint("app_id", name=op.f("pk_app_accounts")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.account_id"], name=op.f("fk_app_accounts_account_id_accounts")
        ),
    )
    op.create_index(
        "uq_app_accounts_account_id_leads",
        "app_accounts",
        ["account_id"],
        unique=True,
        postgresql_where=sa.text("leads"),
    )
    op.create_index("ix_app_accounts_account_id", "app_accounts", ["account_id"])
    op.add_column("stripe_events", sa.Column("api_version", sa.String(length=40), nullable=True))


def downgrade() -> None:
    op.drop_column("stripe_events", "api_version")
    op.drop_table("app_accounts")
    op.drop_table("accounts")
