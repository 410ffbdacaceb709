"""Which apps share a Stripe account, and which of them leads it."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Text, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert

from app.database import Batch
from app.models import Account, AppAccount
from app.services import Services
from app.services.events.accounts import TEST_MODE
from app.services.events.stripe_object import id_of, required
from app.services.reconciliation.reconcile import find_apps
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

# How often an account is looked at.
CHECK_EVERY = timedelta(days=1)

OWN_ACCOUNT = Resource[str]("/v1/account", "account", lambda account: required(id_of(account["id"])))

_account_id: Any = bindparam("account_id", type_=Text)
_token: Any = bindparam("token")

_KNOWN = Batch(
    select(
        AppAccount.app_id,
        AppAccount.account_id,
        AppAccount.leads,
        AppAccount.has_moved,
        (AppAccount.checked_at > func.now() - CHECK_EVERY).label("is_checked"),
    )
)

_new_account = insert(Account).values(account_id=_account_id, lease_token=_token, lease_until=func.now())
_app = insert(AppAccount).values(app_id=bindparam("app_id"), account_id=_account_id)
_moved = AppAccount.account_id != _app.excluded.account_id
# An app whose key opens another account leads the one before no longer, and has secrets that are of that.
_SAVE = Batch(
    _new_account.on_conflict_do_nothing(),
    _app.on_conflict_do_update(
        index_elements=[AppAccount.app_id],
        set_={"account_id": _app.excluded.account_id, "leads": False, "has_moved": True, "checked_at": None},
        where=_moved,
    ),
)


@dataclass(frozen=True)
class KnownApp:
    """What the table says of an app.

    :param has_moved: whether its secrets may be of another account, which its key opened before
    :param is_checked: whether its account was looked at in the last day
    """

    account_id: str
    leads: bool
    has_moved: bool
    is_checked: bool


@dataclass(frozen=True)
class SharedAccount:
    """An account, and the apps that share it.

    :param lead: the app whose path its events come by, or should
    :param has_moved: whether that has secrets of another account
    :param asking: the app with whose key Stripe is asked
    :param app_ids: those whose key was seen to open it
    """

    id: str
    lead: str
    has_moved: bool
    asking: str
    app_ids: tuple[str, ...]


def known_apps(services: Services) -> dict[str, KnownApp]:
    """What the table says, by app."""
    rows = services.database.run(_KNOWN)
    return {row.app_id: KnownApp(row.account_id, row.leads, row.has_moved, bool(row.is_checked)) for row in rows}


def apps_to_check(services: Services, *, known: Mapping[str, KnownApp], only_due: bool = False) -> list[str]:
    """All apps that have payments or are known; or of these the ones that were not looked at for a day."""
    apps = sorted({*find_apps(services), *known})
    return [app_id for app_id in apps if not (only_due and app_id in known and known[app_id].is_checked)]


def look_up(app_id: str, *, services: Services, context: CallContext) -> str:
    """The account that an app's key opens, and in which mode.

    :raises NoStripeKey, StripeRefusal, StripeRateLimited, UpstreamError: when that can't be known
    """
    account_id = services.stripe.retrieve_only(OWN_ACCOUNT, app_id, context)
    return account_id if services.stripe.is_live(app_id, context) else account_id + TEST_MODE


def save(app_id: str, account_id: str, *, services: Services) -> None:
    """Note whose account an app's key opens."""
    services.database.run(_SAVE, app_id=app_id, account_id=account_id, token=uuid.uuid4())


def shared_accounts(known: Mapping[str, KnownApp], seen: Mapping[str, str]) -> Iterator[SharedAccount]:
    """The accounts that were seen, each with its lead: the one that leads it already, or else the first by name.

    :param seen: the account that each app's key was just seen to open
    """
    for account_id in sorted(set(seen.values())):
        app_ids = tuple(sorted(app_id for app_id, opened in seen.items() if opened == account_id))
        stayed = {
            app_id: app for app_id, app in known.items() if app.account_id == account_id == seen.get(app_id, account_id)
        }
        lead = next((app_id for app_id, app in stayed.items() if app.leads), min({*app_ids, *stayed}))
        has_moved = lead in known and (lead not in stayed or known[lead].has_moved)
        yield SharedAccount(account_id, lead, has_moved, lead if lead in app_ids else app_ids[0], app_ids)
