"""Charges that leave an invoice: it is drawn up and paid in several calls, and never left for anybody to pay later.

Each call has the operation's idempotency key and a suffix of its own, so that to repeat all of them from the first
changes nothing. A refusal in the middle ends the invoice before it is told. While an invoice may be left, nothing says
that nothing was executed: only so does recovery come back for it.
"""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from app.errors import NoStripeKey, StripeRateLimited, StripeRefusal, UpstreamError, UpstreamUnavailable
from app.services import Services
from app.services.events.stripe_object import dig, id_of, optional, required, text_of
from app.services.operations.engine import may_be_executed
from app.services.operations.kind import NewContext, find_made
from app.services.operations.operation import HeldOperation
from app.services.payments.charges import require_same_account
from app.services.payments.declines import declined, refusal_shown_by
from app.services.payments.payment_intent import PAYMENT_INTENTS, PaymentIntent
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import UPSTREAM, CardDeclined, NoSuchObject, Resource

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Invoice:
    """What we use of Stripe's invoice, and the whole of it.

    :param payment_intent_id: by which it is paid, where its payments are shown and there is one
    """

    id: str
    status: str
    hosted_invoice_url: str | None
    invoice_pdf: str | None
    payment_intent_id: str | None
    stripe_object: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Invoice":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        payments = dig(answer, "payments", "data")
        paying = payments[0] if isinstance(payments, list) and payments else None
        return cls(
            id=required(id_of(answer["id"])),
            status=required(text_of(answer["status"])),
            hosted_invoice_url=optional(text_of, answer.get("hosted_invoice_url")),
            invoice_pdf=optional(text_of, answer.get("invoice_pdf")),
            payment_intent_id=id_of(dig(paying, "payment", "payment_intent")),
            stripe_object=answer,
        )


INVOICES = Resource("/v1/invoices", "invoice", Invoice.read)
ITEMS = Resource("/v1/invoiceitems", "invoiceitem", lambda item: required(id_of(item["id"])))
_SHOW_PAYMENTS = {"expand": ["payments"]}
_find_invoice = find_made(
    INVOICES,
    mark="paymentId",
    among=lambda operation: {"customer": operation.request["customer_id"], "expand": ["data.payments"]},
)


def charge_with_invoice(
    operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext
) -> PaymentIntent:
    """Draw up an invoice and pay it at once.

    :raises Declined: when the money couldn't be taken; the invoice is voided.
    """
    draft = _create(INVOICES, "invoice", params["invoice"], operation, services, context)
    try:
        return _go_on(draft, operation, params, services, context)
    except (NoStripeKey, StripeRateLimited, UpstreamError) as error:
        if may_be_executed(error):
            raise
        raise UpstreamUnavailable(UPSTREAM, reason="did a part of what was asked for") from error


def _go_on(
    draft: Invoice, operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext
) -> PaymentIntent:
    invoice = draft
    try:
        _create(ITEMS, "item", {**params["item"], "invoice": draft.id}, operation, services, context)
        invoice = _act(draft, "finalize", _SHOW_PAYMENTS, operation, services, context)
        # Before it is paid: the charge takes over what its intent says at that moment.
        services.stripe.update(PAYMENT_INTENTS, operation.app_id, _intent_id(invoice), params["intent"], context)
        _act(invoice, "pay", params["pay"], operation, services, context)
    except StripeRefusal as refusal:
        intent = _end(invoice, operation, services, context)
        if intent is not None and intent.brings_money:
            return intent
        if intent is not None and isinstance(refusal, CardDeclined):
            raise declined(operation, refusal, intent) from None
        raise
    return _intent_of(invoice, operation, services, context)


def find_charge_with_invoice(
    operation: HeldOperation, services: Services, new_context: NewContext
) -> PaymentIntent | None:
    """The intent that pays, or has paid, the invoice that Stripe has made; of any other, nothing is left to pay.

    :raises Declined: when the money couldn't be taken.
    """
    invoice = _find_invoice(operation, services, new_context)
    if invoice is None:
        require_same_account(operation, services, new_context())
        return None
    intent = _end(invoice, operation, services, new_context())
    if intent is None or intent.brings_money:
        return intent
    if refusal := refusal_shown_by(intent):
        raise declined(operation, refusal, intent)
    return None


def _end(invoice: Invoice, operation: HeldOperation, services: Services, context: CallContext) -> PaymentIntent | None:
    """Leave no invoice that anybody could pay, unless its money has come or is on its way; return its intent.

    :raises UpstreamError: when Stripe refuses that: somebody is paying it at this moment.
    """
    intent = None
    if invoice.payment_intent_id is not None:
        intent = _intent_of(invoice, operation, services, context)
    if intent is None or not intent.brings_money:
        with _never_refused("to end an invoice"):
            _delete_or_void(invoice, operation, services, context)
    return intent


@contextmanager
def _never_refused(what: str) -> Iterator[None]:
    """Take no refusal of what we do besides for one of the charge.

    :raises UpstreamError: in its place.
    """
    try:
        yield
    except StripeRefusal as refusal:
        raise UpstreamError(UPSTREAM, reason=f"refused {what}") from refusal


def _delete_or_void(invoice: Invoice, operation: HeldOperation, services: Services, context: CallContext) -> None:
    try:
        status = services.stripe.retrieve(INVOICES, operation.app_id, invoice.id, context).status
        if status == "draft":
            services.stripe.delete(INVOICES, operation.app_id, invoice.id, context)
    except NoSuchObject:
        # A try before this one has deleted it.
        return
    # Of one that is paid by now, Stripe refuses it.
    if status in ("open", "paid"):
        # Under a key of its own: the state is the guard, and a failure that Stripe keeps must not leave it open.
        services.stripe.act(
            INVOICES, operation.app_id, invoice.id, "void", {}, idempotency_key=str(uuid.uuid4()), context=context
        )


def _intent_of(invoice: Invoice, operation: HeldOperation, services: Services, context: CallContext) -> PaymentIntent:
    """The intent that pays an invoice, as Stripe shows it now."""
    with _never_refused("to show an intent"):
        intent = services.stripe.retrieve(PAYMENT_INTENTS, operation.app_id, _intent_id(invoice), context)
    return replace(
        intent,
        stripe_object={**intent.stripe_object, "invoice": invoice.id},
        invoice={
            "invoice_id": invoice.id,
            "hosted_invoice_url": invoice.hosted_invoice_url,
            "invoice_pdf": invoice.invoice_pdf,
        },
    )


def _intent_id(invoice: Invoice) -> str:
    """:raises UpstreamError: when none pays it, as where the customer has a credit with the app."""
    if invoice.payment_intent_id is None:
        raise UpstreamError(UPSTREAM, reason="made an invoice that no payment intent pays")
    return invoice.payment_intent_id


def _create(
    resource: Resource[T],
    name: str,
    params: Mapping[str, Any],
    operation: HeldOperation,
    services: Services,
    context: CallContext,
) -> T:
    key = f"{operation.upstream_key}:{name}"
    return services.stripe.create(resource, operation.app_id, params, idempotency_key=key, context=context)


def _act(
    invoice: Invoice,
    action: str,
    params: Mapping[str, Any],
    operation: HeldOperation,
    services: Services,
    context: CallContext,
) -> Invoice:
    return services.stripe.act(
        INVOICES,
        operation.app_id,
        invoice.id,
        action,
        params,
        idempotency_key=f"{operation.upstream_key}:{action}",
        context=context,
    )
