"""Whether the database answers and has the migrations of this version."""

from functools import cache

from alembic.script import ScriptDirectory
from sqlalchemy import text

from app.database import Batch
from app.errors import DATABASE_ERRORS
from app.extensions import MIGRATIONS
from app.services import Services

_CURRENT_REVISIONS = Batch(text("SELECT version_num FROM alembic_version"))
_HAS_VERSIONS = Batch(text("SELECT to_regclass('alembic_version') IS NOT NULL AS is_there"))


def check_readiness(services: Services) -> dict[str, str]:
    """`database` and `migrations`, each `ok` or what is wrong with it; nothing secret."""
    try:
        (versions,) = services.database.run(_HAS_VERSIONS)
        rows = services.database.run(_CURRENT_REVISIONS) if versions.is_there else []
    except DATABASE_ERRORS:
        return {"database": "unavailable", "migrations": "unknown"}
    return {"database": "ok", "migrations": "ok" if _can_serve({row.version_num for row in rows}) else "not at head"}


def _can_serve(revisions: set[str]) -> bool:
    """Whether a database is at this version's newest migration, or at one that this version doesn't know.

    Migrations run beside the version before them, which then goes on serving on a newer schema.
    """
    return bool(revisions) and not revisions & _older_revisions()


@cache
def _older_revisions() -> frozenset[str]:
    scripts = ScriptDirectory(str(MIGRATIONS))
    return frozenset(script.revision for script in scripts.walk_revisions()) - frozenset(scripts.get_heads())
