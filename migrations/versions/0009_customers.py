"""customers: which customer at Stripe is an organisation's.

Revision: 0009
After: 0008

The version before runs beside this: it knows nothing of the new table.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    time = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "customers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app_id", sa.String(length=200), nullable=False),
        sa.Column("org_id", sa.String(length=200), nullable=False),
        sa.Column("stripe_customer_id", sa.String(length=255), nullable=True),
        sa.Column("created_at", time, server_default=sa.func.now(), nullable=False),
        sa.Column("deleted_at", time, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_customers")),
    )
    op.create_index(
        "uq_customers_app_id_org_id",
        "customers",
        ["app_id", "org_id"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_customers_stripe_customer_id_app_id", "customers", ["stripe_customer_id", "app_id"], unique=True
    )


def downgrade() -> None:
    op.drop_table("customers")
