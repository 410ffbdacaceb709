"""unreadable events: people find what Stripe listed among its events and nobody could read.

Revision: 0004
After: 0003

The version before runs beside this: it stores no such thing, and the index is made while others write.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INDEX = "ix_stripe_events_unreadable"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # One that was left half made is of no use, and in the way.
        op.drop_index(INDEX, table_name="stripe_events", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            INDEX,
            "stripe_events",
            ["received_at"],
            postgresql_where=sa.text("type = 'unreadable'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(INDEX, table_name="stripe_events", postgresql_concurrently=True)
