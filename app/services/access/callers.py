"""Callers: whoever sends an API key, and what they may do with it."""

import hashlib
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cachetools import LRUCache, TTLCache
from sqlalchemy import LargeBinary, bindparam, func, or_, select, update

from app.database import Batch, Database
from app.errors import DATABASE_ERRORS, TooManyWrongKeys
from app.models import ApiKey, KeyScope

Clock = Callable[[], float]

log = logging.getLogger(__name__)

KEY_PREFIX = "ss_"
# Of 32 random bytes, in the letters of URLs.
_SECRET_LENGTH = 43
_KEY = re.compile(rf"{KEY_PREFIX}[A-Za-z0-9_-]{{{_SECRET_LENGTH}}}".encode())

# A key that is revoked is refused after that long, in each process.
KEPT_SECONDS = 10.0
# A key that isn't known may be made at any moment.
UNKNOWN_KEPT_SECONDS = 2.0
MAX_KEPT = 10_000

# Somebody who mistypes a key isn't kept waiting; whoever guesses soon tries one a minute.
FREE_WRONG_KEYS = 10
LONGEST_PAUSE_SECONDS = 60.0
# Whoever goes on for a day would else double beyond what a float holds.
_MOST_DOUBLINGS = 10
WRONG_KEYS_COUNTED_SECONDS = 600.0

# As exactly as anyone has to know when a key was used, and one write for all requests of that time.
USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Who calls.

    :param app_id: the app whose key it is; None where it is the service's own, which may do all for every app
    """

    app_id: str | None = None
    scope: KeyScope = KeyScope.MONEY
    key_id: uuid.UUID | None = None

    def may(self, scope: KeyScope) -> bool:
        """Whether what needs this scope is open to the caller: each scope has all that the ones before it have."""
        order = list(KeyScope)
        return order.index(scope) <= order.index(self.scope)


SERVICE = Caller()

_was_not_just_used = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - USE_NOTED_EVERY)

_FIND = Batch(
    select(ApiKey.id, ApiKey.app_id, ApiKey.scope, _was_not_just_used.label("is_news")).where(
        ApiKey.hash == bindparam("hash", type_=LargeBinary), ApiKey.live()
    )
)
_USE = Batch(
    update(ApiKey)
    .where(ApiKey.id == bindparam("key_id"), _was_not_just_used)
    .values(last_used_at=func.now())
    .returning(ApiKey.id)
)


def hash_of(key: bytes) -> bytes:
    """What is stored of a key. 256 random bits can't be guessed, so a slow hash would protect nothing more."""
    return hashlib.sha256(key).digest()


class WrongKeys:
    """How many wrong keys came from each address, and for how long no further one is looked at."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Of each address how many, and until when.
        self._counted: MutableMapping[str, tuple[int, float]] = TTLCache(MAX_KEPT, WRONG_KEYS_COUNTED_SECONDS, clock)

    def check(self, address: str) -> None:
        """:raises TooManyWrongKeys: where the address has to wait."""
        _, until = self._counted.get(address, (0, 0.0))
        if (left := until - self._clock()) > 0:
            raise TooManyWrongKeys(math.ceil(left))

    def count(self, address: str) -> None:
        """Count a wrong key; from some on, each makes the next one wait twice as long."""
        count = self._counted.get(address, (0, 0.0))[0] + 1
        self._counted[address] = count, self._clock() + _pause_after(count)


def _pause_after(count: int) -> float:
    """How long the next wrong key has to wait after so many, in seconds."""
    doublings = min(count - FREE_WRONG_KEYS, _MOST_DOUBLINGS)
    return min(2.0**doublings, LONGEST_PAUSE_SECONDS) if doublings >= 0 else 0.0


class Callers:
    """Knows the keys of apps, from the database and for some seconds from memory.

    :param clock: gives seconds, and never goes back
    """

    def __init__(self, database: Database, clock: Clock = time.monotonic) -> None:
        self._database = database
        self._known: MutableMapping[bytes, Caller] = TTLCache(MAX_KEPT, KEPT_SECONDS, clock)
        self._unknown: MutableMapping[bytes, None] = TTLCache(MAX_KEPT, UNKNOWN_KEPT_SECONDS, clock)
        self._once_known: MutableMapping[bytes, None] = LRUCache(MAX_KEPT)
        self._wrong_keys = WrongKeys(clock)
        self._lock = threading.Lock()

    def find(self, key: bytes, *, address: str) -> Caller | None:
        """Who calls with this key; None where it is none of an app's, or no more.

        :param address: where the request comes from; of one that sends wrong keys, keys that never were right are not
            looked at for a while
        :raises TooManyWrongKeys: while that lasts.
        :raises OperationalError: when only the database can tell, and doesn't.
        """
        # What has another form can't be an app's key, so nothing is looked at for it.
        if not _KEY.fullmatch(key):
            return None
        digest = hash_of(key)
        with self._lock:
            if (caller := self._known.get(digest)) is not None:
                return caller
            if digest not in self._once_known:
                self._wrong_keys.check(address)
            is_unknown = digest in self._unknown
        caller = None if is_unknown else self._ask(digest)
        with self._lock:
            if caller is None:
                self._unknown[digest] = None
                self._wrong_keys.count(address)
            else:
                self._known[digest] = caller
                self._once_known[digest] = None
        return caller

    def _ask(self, digest: bytes) -> Caller | None:
        found = self._database.run(_FIND, hash=digest)
        if not found:
            return None
        (row,) = found
        if row.is_news:
            self._note_use(row)
        return Caller(row.app_id, KeyScope(row.scope), row.id)

    def _note_use(self, row: Any) -> None:
        try:
            self._database.run(_USE, key_id=row.id)
        except DATABASE_ERRORS as error:
            # A database that only reads answers questions still.
            log.warning("the use of key %s could not be noted: %s", row.id, type(error).__name__)
