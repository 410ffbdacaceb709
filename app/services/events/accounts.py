"""Accounts: apps that share a Stripe account hear of it by the path of one of them, the app that leads the account."""

from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, select
from sqlalchemy.orm import aliased

from app.database import Batch
from app.models import AppAccount
from app.services import Services
from app.services.events.stripe_event import Event

# Behind the id of an account in test mode, which has keys, events and endpoints of its own.
TEST_MODE = ":test"

_ACCOUNT_OF = Batch(select(AppAccount.account_id).where(AppAccount.app_id == bindparam("app_id")))


def may_touch(event_app_id: Any, app_id: Any) -> ColumnElement[bool]:
    """Whether an event may touch an app's payments, in SQL: it came by the path of all, of the app, or of its lead."""
    told_to: ColumnElement[bool] = event_app_id.in_(["", app_id, lead_of(app_id)])
    return told_to


def lead_of(app_id: Any) -> ScalarSelect[Any]:
    """The app that leads an app's account, in SQL; null where there is none yet."""
    member, lead = aliased(AppAccount), aliased(AppAccount)
    leads = (lead.account_id == member.account_id) & lead.leads
    found = select(lead.app_id).join(member, leads).where(member.app_id == app_id)
    # However deep in a statement it stands, the app is the statement's own.
    return found.correlate_except(member, lead).scalar_subquery()


def is_foreign(event: Event, app_id: str | None, services: Services) -> bool:
    """Whether an event that came by an app's path says that it is of another account (Connect, an organisation).

    https://docs.stripe.com/connect/webhooks
    """
    if app_id is None or event.account is None:
        return False
    known = services.database.run(_ACCOUNT_OF, app_id=app_id)
    return not known or known[0].account_id.removesuffix(TEST_MODE) != event.account
