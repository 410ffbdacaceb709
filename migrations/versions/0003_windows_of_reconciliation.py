"""windows of reconciliation: where the reading of an app's events stopped.

Revision: 0003
After: 0002

The version before runs beside this: it leaves the new columns empty, and reads each window from its beginning.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = ("window_since", "window_until", "types_left", "last_event_id")
IS_WHOLE = (
    "(window_since IS NULL) = (window_until IS NULL) AND (window_since IS NULL) = (types_left IS NULL)"
    " AND (last_event_id IS NULL OR window_since IS NOT NULL)"
)


def upgrade() -> None:
    op.add_column("event_cursors", sa.Column("window_since", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("event_cursors", sa.Column("window_until", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("event_cursors", sa.Column("types_left", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("event_cursors", sa.Column("last_event_id", sa.String(length=255), nullable=True))
    op.create_check_constraint("window_is_whole", "event_cursors", IS_WHOLE)


def downgrade() -> None:
    op.drop_constraint("window_is_whole", "event_cursors", type_="check")
    for column in COLUMNS:
        op.drop_column("event_cursors", column)
