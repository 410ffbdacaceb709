"""Places in lists, newest first, as cursors that callers send back."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.errors import InvalidRequest


@dataclass(frozen=True)
class Position:
    """A place in a list: after what was made then and has this id."""

    created_at: datetime
    id: str

    @classmethod
    def of(cls, cursor: str, *, read_id: Callable[[str], str]) -> "Position":
        """Read a cursor that an earlier page gave.

        :param read_id: raises ValueError for what can't be an id
        :raises InvalidRequest: when it is none.
        """
        try:
            created_at, _, last_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
            # A forged one may name a time that exists in no other zone.
            position = cls(datetime.fromisoformat(created_at).astimezone(UTC), read_id(last_id))
        except (OverflowError, ValueError):
            raise InvalidRequest({"cursor": ["Is not one that a page gave."]}) from None
        return position


def cursor_after(row: Any) -> str:
    """The cursor of the place after a row."""
    return base64.urlsafe_b64encode(f"{row.created_at.isoformat()}/{row.id}".encode()).decode()
