"""The lease of an account: one process at a time makes and mends its endpoints, and says which app leads it."""

import logging
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, any_, bindparam, exists, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from app.database import Batch
from app.errors import DATABASE_ERRORS, ServiceError
from app.models import Account, AppAccount
from app.services import Services
from app.services.operations.operation import LEASE, lease_of
from app.services.operations.recovery import command_context
from app.services.upstreams.call_context import CallContext

log = logging.getLogger(__name__)

_account_id: Any = bindparam("account_id", type_=Text)
_token: Any = bindparam("token")

_CLAIM = Batch(
    update(Account)
    .where(Account.account_id == _account_id, Account.lease_until <= func.now())
    .values(lease_token=_token, lease_until=LEASE)
    .returning(Account.account_id)
)
_is_held = (Account.account_id == _account_id) & (Account.lease_token == _token)
_EXTEND = Batch(update(Account).where(_is_held).values(lease_until=LEASE).returning(Account.account_id))
_RELEASE = Batch(update(Account).where(_is_held).values(lease_until=func.now()))

_LEAD = Batch(select(AppAccount.app_id).where(AppAccount.account_id == _account_id, AppAccount.leads))
_is_ours = (AppAccount.account_id == _account_id) & exists().where(_is_held)
_ELECT = Batch(
    update(AppAccount).where(_is_ours, AppAccount.app_id == bindparam("lead")).values(leads=True, has_moved=False)
)
_CHECKED = Batch(
    update(AppAccount)
    .where(_is_ours, AppAccount.app_id == any_(bindparam("app_ids", type_=ARRAY(Text))))
    .values(checked_at=func.now())
)


class AccountTaken(ServiceError):
    """Another process has the account's endpoints in hand."""

    code = "account_taken"

    def __init__(self) -> None:
        super().__init__("another process has it")


@dataclass(frozen=True)
class HeldAccount:
    """An account whose endpoints this process has to itself."""

    account_id: str
    token: uuid.UUID
    command: str
    services: Services

    @classmethod
    def claim(cls, account_id: str, *, command: str, services: Services) -> "HeldAccount":
        """Have an account's endpoints to oneself for a while.

        :raises AccountTaken: when another process has.
        """
        held = cls(account_id, uuid.uuid4(), command, services)
        held._require(_CLAIM)
        return held

    def context(self) -> CallContext:
        """Keep the account, and say until when the next call may take.

        :raises AccountTaken: when another process has it by now.
        """
        self._require(_EXTEND)
        return command_context(self.command, self.services)

    def lead(self) -> str | None:
        """The app that leads the account, where one does."""
        found = self._run(_LEAD)
        return found[0].app_id if found else None

    def elect(self, app_id: str) -> None:
        """Let the account's events that come by an app's path reach all its apps, now that its secret is in place."""
        self._run(_ELECT, lead=app_id)

    def note_check(self, app_ids: tuple[str, ...]) -> None:
        """Note that the account was looked at for these apps."""
        self._run(_CHECKED, app_ids=list(app_ids))

    def release(self) -> None:
        """Let the account go; if that fails, its lease lapses by itself."""
        try:
            self._run(_RELEASE)
        except DATABASE_ERRORS:
            log.warning("the lease of account %s could not be ended; it lapses by itself", self.account_id)

    def _require(self, batch: Batch) -> None:
        if not self._run(batch, lease=lease_of(self.services)):
            raise AccountTaken

    def _run(self, batch: Batch, **values: Any) -> list[Any]:
        return self.services.database.run(batch, account_id=self.account_id, token=self.token, **values)
