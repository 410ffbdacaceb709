"""What an organisation's customer pays with: Stripe keeps it, and shows it at the moment of asking."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stripe.params import CustomerUpdateParams, PaymentMethodListParams

from app.errors import NotFound
from app.services import Services
from app.services.customers.customer import CUSTOMERS
from app.services.customers.customers import require_customer_id, retrieve_customer
from app.services.customers.known import find_customer_id
from app.services.events.stripe_object import cents_of, id_of, optional, required, text_of
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import NoSuchObject, Resource

CARD, LINK = "card", "link"
NOT_FOUND = "Payment method not found"


@dataclass(frozen=True, kw_only=True)
class PaymentMethod:
    """What we use of Stripe's payment method. What only a card has is None for others.

    https://docs.stripe.com/api/payment_methods/object
    """

    id: str
    type: str
    customer_id: str | None
    brand: str | None
    last4: str | None
    exp_month: int | None
    exp_year: int | None
    country: str | None

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "PaymentMethod":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        card = answer.get(CARD) or {}
        return cls(
            id=required(id_of(answer["id"])),
            type=required(text_of(answer["type"])),
            customer_id=id_of(answer.get("customer")),
            brand=optional(text_of, card.get("brand")),
            last4=optional(text_of, card.get("last4")),
            exp_month=optional(cents_of, card.get("exp_month")),
            exp_year=optional(cents_of, card.get("exp_year")),
            country=optional(text_of, card.get("country")),
        )

    @property
    def is_chargeable(self) -> bool:
        """Whether it can be charged without the customer: Stripe refuses wallets, and debits take mandates."""
        return self.type in (CARD, LINK)


PAYMENT_METHODS = Resource("/v1/payment_methods", "payment_method", PaymentMethod.read)


def choose_method(methods: Sequence[PaymentMethod], default_id: str | None) -> PaymentMethod | None:
    """What is charged where the caller names nothing: the default, else the newest card, else the newest Link.

    :param methods: all of a customer's, the newest first
    """
    chargeable = [method for method in methods if method.is_chargeable]
    # Stable, so that the newest of each sort stays the first.
    chargeable.sort(key=lambda method: (method.id != default_id, method.type != CARD))
    return next(iter(chargeable), None)


def methods_of(
    app_id: str, customer_id: str, method_type: str | None = None, *, services: Services, context: CallContext
) -> list[PaymentMethod]:
    """All that a customer has saved, the newest first.

    :raises ServiceError: as the contract's table of errors says.
    """
    filters: PaymentMethodListParams = {"customer": customer_id}
    if method_type is not None:
        filters["type"] = method_type
    return list(services.stripe.list(PAYMENT_METHODS, app_id, filters, new_context=lambda: context))


def list_methods(
    org_id: str, *, app_id: str, type: str | None = None, services: Services, context: CallContext
) -> list[dict[str, Any]]:
    """What an organisation has saved, as `PaymentMethodSchema` describes it: first what would be charged.

    :param type: only those of this type of Stripe's
    :raises ServiceError: as the contract's table of errors says.
    """
    customer_id = find_customer_id(app_id, org_id, services)
    if customer_id is None:
        return []
    try:
        default_id = retrieve_customer(
            app_id, customer_id, services=services, context=context
        ).default_payment_method_id
    except NotFound:
        return []
    methods = methods_of(app_id, customer_id, type, services=services, context=context)
    chosen = choose_method(methods, default_id)
    return [_shown(method, default_id) for method in sorted(methods, key=lambda method: method != chosen)]


def _shown(method: PaymentMethod, default_id: str | None) -> dict[str, Any]:
    names = ("type", "brand", "last4", "exp_month", "exp_year", "country")
    return {
        "payment_method_id": method.id,
        **{name: getattr(method, name) for name in names},
        "is_default": method.id == default_id,
        "chargeable": method.is_chargeable,
    }


def set_default_method(
    app_id: str, org_id: str, payment_method_id: str, *, services: Services, context: CallContext
) -> None:
    """Have a saved method be charged where nothing else is named.

    :raises NotFound: when it isn't the organisation's.
    :raises ServiceError: as the contract's table of errors says.
    """
    customer_id = _require_own(app_id, org_id, payment_method_id, services, context)
    params: CustomerUpdateParams = {"invoice_settings": {"default_payment_method": payment_method_id}}
    services.stripe.update(CUSTOMERS, app_id, customer_id, params, context)


def detach_method(
    app_id: str, org_id: str, payment_method_id: str, *, services: Services, context: CallContext
) -> None:
    """Remove a saved method from the organisation's customer.

    :raises NotFound: when it isn't the organisation's.
    :raises ServiceError: as the contract's table of errors says.
    """
    _require_own(app_id, org_id, payment_method_id, services, context)
    services.stripe.act(
        PAYMENT_METHODS, app_id, payment_method_id, "detach", {}, idempotency_key=str(uuid.uuid4()), context=context
    )


def _require_own(app_id: str, org_id: str, payment_method_id: str, services: Services, context: CallContext) -> str:
    """The organisation's customer, which has saved the method.

    :raises NotFound: when it hasn't.
    """
    customer_id = require_customer_id(app_id, org_id, services=services)
    try:
        method = services.stripe.retrieve(PAYMENT_METHODS, app_id, payment_method_id, context)
    except NoSuchObject as error:
        raise NotFound(NOT_FOUND) from error
    if method.customer_id != customer_id:
        raise NotFound(NOT_FOUND)
    return customer_id
