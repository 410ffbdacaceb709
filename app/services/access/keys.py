"""Keys of apps: made, listed, rotated and revoked. A key itself is shown once, and never stored."""

import secrets
import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import Interval, Text, bindparam, func, insert, or_, select, update

from app.database import Batch
from app.errors import NotFound
from app.models import ApiKey, KeyScope
from app.services import Services
from app.services.access.callers import KEY_PREFIX, hash_of

SECRET_BYTES = 32
HINT_LENGTH = 4
MAX_LISTED = 1_000

_COLUMNS = ("id", "app_id", "name", "scope", "hash", "hint")
_INSERT = Batch(insert(ApiKey).values({name: bindparam(name) for name in _COLUMNS}).returning(ApiKey.id))

_LIST = Batch(
    select(
        ApiKey.id.label("key_id"),
        ApiKey.app_id,
        ApiKey.name,
        ApiKey.scope,
        ApiKey.hint,
        ApiKey.created_at,
        ApiKey.last_used_at,
        ApiKey.expires_at,
        ApiKey.revoked_at,
    )
    .where(or_(bindparam("app_id", type_=Text).is_(None), ApiKey.app_id == bindparam("app_id", type_=Text)))
    .order_by(ApiKey.created_at.desc(), ApiKey.id)
    .limit(MAX_LISTED)
)

_is_key = ApiKey.id == bindparam("key_id")
_REVOKE = Batch(
    update(ApiKey).where(_is_key).values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now())).returning(ApiKey.id)
)
# The end that a key has already stays where it is sooner.
_EXPIRE = Batch(
    update(ApiKey)
    .where(_is_key, ApiKey.live())
    .values(expires_at=func.least(ApiKey.expires_at, func.now() + bindparam("overlap", type_=Interval)))
    .returning(ApiKey.app_id, ApiKey.name, ApiKey.scope)
)


def create_key(app_id: str, *, name: str | None, scope: KeyScope, services: Services) -> dict[str, Any]:
    """Make a key for an app: its id, and the key itself, which nobody can be shown again."""
    row, shown = _new_key(app_id=app_id, name=name, scope=scope)
    services.database.run(_INSERT, **row)
    return shown


def list_keys(app_id: str | None = None, *, services: Services) -> list[dict[str, Any]]:
    """The keys, of one app or of all, the newest first; also those that are no longer of use."""
    return [row._asdict() for row in services.database.run(_LIST, app_id=app_id)]


def rotate_key(key_id: str, *, overlap: timedelta, services: Services) -> dict[str, Any]:
    """Make another key for the app of a key, which ends after the overlap.

    :raises NotFound: when there is no such key that is still of use.
    """
    with services.database.transaction() as transaction:
        found = transaction.run(_EXPIRE, key_id=_read_id(key_id), overlap=overlap)
        if not found:
            raise NotFound("Key not found")
        row, shown = _new_key(**found[0]._asdict())
        transaction.run_and_commit(_INSERT, **row)
    return shown


def revoke_key(key_id: str, *, services: Services) -> None:
    """Refuse a key from now on; each process that knows it does so within some seconds.

    :raises NotFound: when there is no such key.
    """
    if not services.database.run(_REVOKE, key_id=_read_id(key_id)):
        raise NotFound("Key not found")


def _read_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise NotFound("Key not found") from None


def _new_key(*, app_id: str, name: str | None, scope: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a new key, and what its owner is shown."""
    key, key_id = KEY_PREFIX + secrets.token_urlsafe(SECRET_BYTES), uuid.uuid4()
    row = {
        "id": key_id,
        "app_id": app_id,
        "name": name,
        "scope": scope,
        "hash": hash_of(key.encode()),
        "hint": key[-HINT_LENGTH:],
    }
    return row, {"success": True, "key_id": key_id, "key": key}
