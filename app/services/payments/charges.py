"""Charges without the customer: of whom, by which saved method, and what Stripe makes of them."""

from collections.abc import Mapping
from typing import Any

from app.errors import NoPaymentMethod, NotFound
from app.services import Services
from app.services.customers.customer import CUSTOMERS
from app.services.customers.customers import ensure_customer, retrieve_customer
from app.services.customers.known import find_customer_id
from app.services.customers.payment_methods import choose_method, methods_of
from app.services.operations.kind import NewContext, create_at, find_made
from app.services.operations.operation import HeldOperation
from app.services.payments.declines import declined, refusal_shown_by
from app.services.payments.payment_intent import PAYMENT_INTENTS, PaymentIntent
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import CardDeclined

_create = create_at(PAYMENT_INTENTS)
_find = find_made(PAYMENT_INTENTS, mark="paymentId")


def resolve_customer(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    """A payment's request with the organisation's customer, where it names none and there is one, or is to be.

    :raises ServiceError: as the contract's table of errors says.
    """
    if "customer_id" in body or "org_id" not in body:
        return body
    app_id, org_id = body["app_id"], body["org_id"]
    if body.get("save_for_later"):
        customer_id, _ = ensure_customer(app_id, org_id, {}, services=services, context=context)
        return {**body, "customer_id": customer_id}
    found = find_customer_id(app_id, org_id, services)
    return body if found is None else {**body, "customer_id": found}


def resolve_charge(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    """A payment intent's request with its customer, and for a charge with the method that is charged.

    :raises NoPaymentMethod: when the customer has saved none that can be.
    :raises ServiceError: as the contract's table of errors says.
    """
    resolved = resolve_customer(body, services, context)
    if not body.get("off_session") or ("customer_id" in resolved and "payment_method_id" in body):
        return resolved
    if "customer_id" not in resolved:
        raise NoPaymentMethod
    return {**resolved, "payment_method_id": _choose(body["app_id"], resolved["customer_id"], services, context)}


def _choose(app_id: str, customer_id: str, services: Services, context: CallContext) -> str:
    try:
        customer = retrieve_customer(app_id, customer_id, services=services, context=context)
    except NotFound as error:
        raise NoPaymentMethod from error
    methods = methods_of(app_id, customer_id, services=services, context=context)
    chosen = choose_method(methods, customer.default_payment_method_id)
    if chosen is None:
        raise NoPaymentMethod
    return chosen.id


def create_intent(
    operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext
) -> PaymentIntent:
    """Have Stripe make an intent, and for a charge try to take the money at once.

    https://docs.stripe.com/payments/save-and-reuse?platform=web&ui=elements#charge-saved-payment-method

    :raises Declined: when the money couldn't be taken.
    """
    try:
        return _create(operation, params, services, context)
    except CardDeclined as refusal:
        intent = refusal.read_intent(PAYMENT_INTENTS)
        if intent is None:
            raise
        raise declined(operation, refusal, intent) from None


def find_intent(operation: HeldOperation, services: Services, new_context: NewContext) -> PaymentIntent | None:
    """The intent that Stripe has made.

    :raises Declined: when the money couldn't be taken by it.
    """
    found = _find(operation, services, new_context)
    if not operation.request.get("off_session"):
        return found
    if found is None:
        require_same_account(operation, services, new_context())
        return None
    if found.brings_money:
        return found
    if refusal := refusal_shown_by(found):
        raise declined(operation, refusal, found)
    return found


def require_same_account(operation: HeldOperation, services: Services, context: CallContext) -> None:
    """Make sure that the account of the app's key is the one that was asked to charge: only that one has the customer.

    :raises NoSuchObject: when it is another.
    """
    services.stripe.retrieve(CUSTOMERS, operation.app_id, operation.request["customer_id"], context)
