"""Pages of Stripe's for a customer: to save a card, and to look after what is saved.

None of them moves money, so that two of them are no more than one; a caller's Idempotency-Key is Stripe's to remember.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stripe.params.billing_portal import SessionCreateParams as PortalCreateParams
from stripe.params.checkout import SessionCreateParams

from app.errors import NotFound
from app.services import Services
from app.services.callers_key import answering_for_the_callers_key, stripe_key
from app.services.customers.customers import NOT_FOUND, ensure_customer, require_customer_id
from app.services.customers.known import note_deleted
from app.services.events.stripe_object import id_of, optional, required, text_of
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import NoSuchObject, Resource


@dataclass(frozen=True, kw_only=True)
class SetupSession:
    """What we use of Stripe's checkout session in mode `setup`."""

    id: str
    url: str | None
    client_secret: str | None = field(repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "SetupSession":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        return cls(
            id=required(id_of(answer["id"])),
            url=optional(text_of, answer.get("url")),
            client_secret=optional(text_of, answer.get("client_secret")),
        )


DEFAULT_CURRENCY = "usd"

SETUP_SESSIONS = Resource("/v1/checkout/sessions", "checkout.session", SetupSession.read)
PORTAL_SESSIONS = Resource(
    "/v1/billing_portal/sessions", "billing_portal.session", lambda session: required(text_of(session["url"]))
)


@answering_for_the_callers_key()
def open_setup_page(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> dict[str, Any]:
    """A page on which the organisation's customer, which is made where there is none, saves a card.

    :raises ServiceError: as the contract's table of errors says.
    """
    app_id, org_id = body["app_id"], body["org_id"]
    customer_id, _ = ensure_customer(app_id, org_id, {}, services=services, context=context)
    session = services.stripe.create(
        SETUP_SESSIONS,
        app_id,
        _setup_params(body, customer_id),
        idempotency_key=stripe_key("setup", app_id, idempotency_key),
        context=context,
    )
    return {"success": True, "session_id": session.id, "url": session.url, "client_secret": session.client_secret}


def _setup_params(body: Mapping[str, Any], customer_id: str) -> SessionCreateParams:
    """https://docs.stripe.com/payments/save-and-reuse?platform=web&ui=stripe-hosted"""
    params: SessionCreateParams = {
        "mode": "setup",
        "customer": customer_id,
        # By which Stripe chooses what the page offers.
        "currency": DEFAULT_CURRENCY,
        "metadata": {"appId": body["app_id"], "orgId": body["org_id"]},
    }
    if "return_url" in body:
        return {**params, "ui_mode": "embedded_page", "return_url": body["return_url"]}
    return {**params, "success_url": body["success_url"], "cancel_url": body["cancel_url"]}


@answering_for_the_callers_key()
def open_billing_portal(
    body: Mapping[str, Any], *, idempotency_key: str | None, services: Services, context: CallContext
) -> str:
    """The address of a page on which the organisation's customer looks after its cards and invoices.

    :raises NotFound: when the organisation has no customer.
    :raises ServiceError: as the contract's table of errors says.
    """
    app_id = body["app_id"]
    customer_id = require_customer_id(app_id, body["org_id"], services=services)
    params: PortalCreateParams = {"customer": customer_id, "return_url": body["return_url"]}
    key = stripe_key("portal", app_id, idempotency_key)
    try:
        return services.stripe.create(PORTAL_SESSIONS, app_id, params, idempotency_key=key, context=context)
    except NoSuchObject as error:
        note_deleted(app_id, customer_id, services=services)
        raise NotFound(NOT_FOUND) from error
