"""Whether the database answers and has the migrations of this version."""

from functools import cache
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import text

from app.errors import DATABASE_ERRORS
from app.services import Services

MIGRATIONS = Path(__file__).parents[2] / "migrations"

_CURRENT_REVISIONS = text("SELECT version_num FROM alembic_version")
_HAS_VERSIONS = text("SELECT to_regclass('alembic_version') IS NOT NULL")


def check_readiness(services: Services) -> dict[str, str]:
    """`database` and `migrations`, each `ok` or what is wrong with it; nothing secret."""
    try:
        with services.database.connect() as connection:
            migrated = connection.execute(_HAS_VERSIONS).scalar_one()
            revisions = set(connection.execute(_CURRENT_REVISIONS).scalars()) if migrated else set()
    except DATABASE_ERRORS:
        return {"database": "unavailable", "migrations": "unknown"}
    return {"database": "ok", "migrations": "ok" if revisions == expected_revisions() else "not at head"}


@cache
def expected_revisions() -> frozenset[str]:
    """The revisions that this version of the code was written for."""
    return frozenset(ScriptDirectory(str(MIGRATIONS)).get_heads())
