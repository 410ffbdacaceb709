"""How the database is reached: a small pool, bounded waits, and no session state that a pooler would lose."""

from typing import Any

import orjson

from app.config import Settings

# A request without a connection for this long is answered with 503, rather than late.
POOL_WAIT_SECONDS = 2
CONNECT_TIMEOUT_SECONDS = 10


def database_config(settings: Settings) -> dict[str, Any]:
    """Flask-SQLAlchemy's configuration."""
    return {
        "SQLALCHEMY_DATABASE_URI": settings.database_url or "postgresql+psycopg2://",
        "SQLALCHEMY_ENGINE_OPTIONS": {
            "pool_size": settings.db_pool_size,
            "max_overflow": 0,
            "pool_timeout": POOL_WAIT_SECONDS,
            "connect_args": {"connect_timeout": CONNECT_TIMEOUT_SECONDS},
            "json_serializer": _dump_json,
            "json_deserializer": orjson.loads,
            # Statements are logged with errors; what callers sent, and what Stripe answered, is not.
            "hide_parameters": True,
            "skip_autocommit_rollback": True,
        },
    }


def _dump_json(value: object) -> str:
    return orjson.dumps(value).decode()
