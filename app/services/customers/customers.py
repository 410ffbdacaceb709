"""What callers do with an organisation's customer: ensure, show, delete, transfer.

Ensuring is safe to repeat from anywhere: the row is there before Stripe is asked, and everybody asks under its id. What
sets fields at Stripe, or deletes, comes to the same however often it is done, and needs no more than to be repeated.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from stripe.params import CustomerCreateParams, CustomerUpdateParams

from app.errors import CustomerExists, NotFound
from app.services import Services
from app.services.customers.customer import CUSTOMERS, ROW, Customer
from app.services.customers.known import (
    KnownCustomer,
    find_customer_id,
    find_known,
    find_or_add,
    give_up,
    move,
    note_deleted,
    note_made,
)
from app.services.operations.kind import STRIPE_CLOCK_SKEW
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import IdempotencyKeyExecuting, NoSuchObject, ReplayedFailure

# How soon those look again who wait until another request has the customer made.
LOOK_AGAIN_SECONDS = 0.05

NOT_FOUND = "Customer not found"
# What Stripe calls by the same names as we do.
DETAILS: Final = ("email", "name", "description", "metadata")


def ensure_customer(
    app_id: str, org_id: str, details: Mapping[str, Any], *, services: Services, context: CallContext
) -> tuple[str, bool]:
    """Have an organisation's customer made where there is none, and brought up to date with what is given.

    :param details: any of `email`, `name`, `description`, `metadata`
    :return: the customer's id, and whether this call is the one that has made it
    :raises ServiceError: as the contract's table of errors says.
    """
    services.stripe.require_key(app_id, context)
    is_made_here = False
    while True:
        known = find_or_add(app_id, org_id, services=services)
        if known.stripe_customer_id is None:
            is_made_here = _make(app_id, org_id, known, services, context) or is_made_here
        elif _bring_up_to_date(app_id, known.stripe_customer_id, details, services, context):
            return known.stripe_customer_id, is_made_here


def _make(app_id: str, org_id: str, known: KnownCustomer, services: Services, context: CallContext) -> bool:
    """Have the customer of a row made, as far as it goes now; return whether this call is the first to know of it."""
    try:
        made = _create_or_find(app_id, org_id, known, services, context)
    except IdempotencyKeyExecuting:
        if context.deadline.remaining_seconds <= LOOK_AGAIN_SECONDS:
            raise
        time.sleep(LOOK_AGAIN_SECONDS)
        return False
    if made is None:
        give_up(known, services=services)
        return False
    return note_made(known, made.id, services=services)


def _create_or_find(
    app_id: str, org_id: str, known: KnownCustomer, services: Services, context: CallContext
) -> Customer | None:
    """What Stripe makes under the row's id, or has made; None where it has nothing and won't make it any more.

    https://docs.stripe.com/api/customers/create
    """
    params: CustomerCreateParams = {"metadata": {**_own_metadata(app_id, org_id), ROW: str(known.id)}}
    if not known.is_old:
        try:
            key = f"customer-{known.id}"
            return services.stripe.create(CUSTOMERS, app_id, params, idempotency_key=key, context=context)
        except ReplayedFailure:
            pass
    since = {"created": {"gte": int((known.created_at - STRIPE_CLOCK_SKEW).timestamp())}}
    return services.stripe.find(CUSTOMERS, app_id, (ROW, str(known.id)), since, new_context=lambda: context)


def _own_metadata(app_id: str, org_id: str) -> dict[str, str]:
    return {"appId": app_id, "orgId": org_id}


def _bring_up_to_date(
    app_id: str, customer_id: str, details: Mapping[str, Any], services: Services, context: CallContext
) -> bool:
    """Set what is given; return whether the customer is there. One that was deleted elsewhere is noted as such."""
    if not details:
        return True
    params: CustomerUpdateParams = {}
    for name in DETAILS:
        if name in details:
            params[name] = details[name]
    try:
        services.stripe.update(CUSTOMERS, app_id, customer_id, params, context)
    except NoSuchObject:
        note_deleted(app_id, customer_id, services=services)
        return False
    return True


def show_customer(org_id: str, *, app_id: str, services: Services, context: CallContext) -> dict[str, Any]:
    """An organisation's customer as Stripe shows it now, as `CustomerSchema` describes it.

    :raises NotFound: when the organisation has none.
    :raises ServiceError: as the contract's table of errors says.
    """
    known = find_known(app_id, org_id, services=services)
    if known is None or known.stripe_customer_id is None:
        raise NotFound(NOT_FOUND)
    customer = retrieve_customer(app_id, known.stripe_customer_id, services=services, context=context)
    return {
        "customer_id": customer.id,
        "app_id": app_id,
        "org_id": org_id,
        "email": customer.email,
        "name": customer.name,
        "metadata": customer.metadata,
        "default_payment_method_id": customer.default_payment_method_id,
        "created_at": known.created_at,
    }


def retrieve_customer(app_id: str, customer_id: str, *, services: Services, context: CallContext) -> Customer:
    """A customer as Stripe shows it now; one that was deleted elsewhere is noted as such.

    :raises NotFound: when it was.
    :raises ServiceError: as the contract's table of errors says.
    """
    try:
        customer = services.stripe.retrieve(CUSTOMERS, app_id, customer_id, context)
    except NoSuchObject:
        customer = None
    if customer is None or customer.is_deleted:
        note_deleted(app_id, customer_id, services=services)
        raise NotFound(NOT_FOUND)
    return customer


def require_customer_id(app_id: str, org_id: str, *, services: Services) -> str:
    """The id of an organisation's customer at Stripe.

    :raises NotFound: when the organisation has none.
    """
    customer_id = find_customer_id(app_id, org_id, services)
    if customer_id is None:
        raise NotFound(NOT_FOUND)
    return customer_id


def delete_customer(org_id: str, *, app_id: str, services: Services, context: CallContext) -> bool:
    """Delete an organisation's customer at Stripe, with what it pays with; return whether it had one.

    :raises ServiceError: as the contract's table of errors says.
    """
    customer_id = find_customer_id(app_id, org_id, services)
    if customer_id is None:
        return False
    with suppress(NoSuchObject):
        services.stripe.delete(CUSTOMERS, app_id, customer_id, context)
    return note_deleted(app_id, customer_id, services=services)


def transfer_customer(app_id: str, org_id: str, to_org_id: str, *, services: Services, context: CallContext) -> bool:
    """Let an organisation's customer be another's; return whether it had one. Its past payments stay.

    :raises CustomerExists: when that other has one of its own.
    :raises ServiceError: as the contract's table of errors says.
    """
    customer_id = find_customer_id(app_id, org_id, services)
    if customer_id is None or org_id == to_org_id:
        return False
    if find_known(app_id, to_org_id, services=services) is not None:
        raise CustomerExists
    # Stripe first: a try that ends here is begun anew, and nothing of it is left undone.
    params: CustomerUpdateParams = {"metadata": _own_metadata(app_id, to_org_id)}
    services.stripe.update(CUSTOMERS, app_id, customer_id, params, context)
    return move(app_id, org_id, to_org_id=to_org_id, stripe_customer_id=customer_id, services=services)
