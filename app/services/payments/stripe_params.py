"""What Stripe is asked for: pure functions from an operation to Stripe's parameters."""

from collections.abc import Mapping
from typing import Any, TypedDict

from stripe.params import (
    InvoiceCreateParams,
    InvoiceItemCreateParams,
    InvoicePayParams,
    PaymentIntentCreateParams,
    PaymentIntentModifyParams,
)
from stripe.params.checkout import (
    SessionCreateParams,
    SessionCreateParamsCustomText,
    SessionCreateParamsDiscount,
    SessionCreateParamsLineItem,
    SessionCreateParamsLineItemAdjustableQuantity,
    SessionCreateParamsLineItemPriceData,
)

from app.services.operations.operation import HeldOperation

DEFAULT_MODE = "payment"
DEFAULT_CURRENCY = "usd"
EMBEDDED = "embedded"


def payment_metadata(operation: HeldOperation) -> dict[str, str]:
    """The caller's metadata and our four keys, by which an event finds its payment; ours win."""
    ours = {
        "paymentId": str(operation.payment_id),
        "appId": operation.app_id,
        "runId": operation.run_id,
        "orgId": operation.request.get("org_id"),
    }
    return {
        **operation.request.get("metadata", {}),
        **{key: value for key, value in ours.items() if value is not None},
    }


def checkout_session_params(operation: HeldOperation) -> SessionCreateParams:
    """https://docs.stripe.com/api/checkout/sessions/create

    The metadata goes onto what the session makes as well: an intent or a subscription doesn't inherit it.
    """
    request, metadata = operation.request, payment_metadata(operation)
    mode = request.get("mode", DEFAULT_MODE)
    params: SessionCreateParams = {
        "mode": mode,
        "line_items": [_line_item(item) for item in request["line_items"]],
        "metadata": metadata,
    }
    if mode == "subscription":
        params["subscription_data"] = {"metadata": metadata}
        if "trial_days" in request:
            params["subscription_data"]["trial_period_days"] = request["trial_days"]
    else:
        params["payment_intent_data"] = {"metadata": metadata}
        if "capture_method" in request:
            params["payment_intent_data"]["capture_method"] = request["capture_method"]
        if request.get("save_for_later"):
            params["payment_intent_data"]["setup_future_usage"] = "off_session"
    _add_customer(params, request)
    if "discounts" in request:
        params["discounts"] = [_discount(discount) for discount in request["discounts"]]
    _add_page(params, request)
    _add_options(params, request)
    return params


def _add_customer(params: SessionCreateParams, request: Mapping[str, Any]) -> None:
    if "customer_id" in request:
        params["customer"] = request["customer_id"]
        return
    if "customer_email" in request:
        params["customer_email"] = request["customer_email"]
    if "customer_creation" in request:
        params["customer_creation"] = request["customer_creation"]


def _add_page(params: SessionCreateParams, request: Mapping[str, Any]) -> None:
    """A page of Stripe's, which it calls `hosted_page` and takes where nothing is said, or one inside of the app's."""
    if request.get("ui_mode") != EMBEDDED:
        params["success_url"] = request["success_url"]
        params["cancel_url"] = request["cancel_url"]
        return
    params["ui_mode"] = "embedded_page"
    if "return_url" in request:
        params["return_url"] = request["return_url"]
    if "redirect_on_completion" in request:
        params["redirect_on_completion"] = request["redirect_on_completion"]


def _add_options(params: SessionCreateParams, request: Mapping[str, Any]) -> None:
    if request.get("allow_promotion_codes"):
        params["allow_promotion_codes"] = True
    if request.get("automatic_tax"):
        params["automatic_tax"] = {"enabled": True}
    if request.get("invoice_creation"):
        params["invoice_creation"] = {"enabled": True}
    if "expires_at" in request:
        params["expires_at"] = request["expires_at"]
    if "locale" in request:
        params["locale"] = request["locale"]
    if "custom_text" in request:
        params["custom_text"] = _custom_text(request["custom_text"])
    if "client_reference_id" in request:
        params["client_reference_id"] = request["client_reference_id"]


def payment_intent_params(operation: HeldOperation) -> PaymentIntentCreateParams:
    """https://docs.stripe.com/api/payment_intents/create"""
    request = operation.request
    params: PaymentIntentCreateParams = {
        "amount": request["amount_in_cents"],
        "currency": request.get("currency", DEFAULT_CURRENCY),
        "automatic_payment_methods": {"enabled": True},
        "metadata": payment_metadata(operation),
    }
    if "customer_id" in request:
        params["customer"] = request["customer_id"]
    if "description" in request:
        params["description"] = request["description"]
    if "capture_method" in request:
        params["capture_method"] = request["capture_method"]
    if "receipt_email" in request:
        params["receipt_email"] = request["receipt_email"]
    if "statement_descriptor_suffix" in request:
        params["statement_descriptor_suffix"] = request["statement_descriptor_suffix"]
    if request.get("save_for_later"):
        params["setup_future_usage"] = "off_session"
    if request.get("off_session"):
        params["confirm"] = params["off_session"] = True
        params["payment_method"] = request["payment_method_id"]
        # Else Stripe wants to know where the customer, who isn't there, is to be sent back to.
        params["automatic_payment_methods"]["allow_redirects"] = "never"
    return params


class InvoicedChargeParams(TypedDict):
    """What Stripe is asked with for a charge that leaves an invoice, call by call."""

    invoice: InvoiceCreateParams
    item: InvoiceItemCreateParams
    intent: PaymentIntentModifyParams
    pay: InvoicePayParams


def invoiced_charge_params(operation: HeldOperation) -> InvoicedChargeParams:
    """https://docs.stripe.com/api/invoices/create

    Nothing but our own call is to finalize the invoice or to try to collect it, and no other item is to be on it. Its
    intent takes over neither the metadata nor the description.
    """
    request, metadata = operation.request, payment_metadata(operation)
    customer, currency = request["customer_id"], request.get("currency", DEFAULT_CURRENCY)
    intent: PaymentIntentModifyParams = {"metadata": metadata, "description": request["description"]}
    if "receipt_email" in request:
        intent["receipt_email"] = request["receipt_email"]
    if "statement_descriptor_suffix" in request:
        intent["statement_descriptor_suffix"] = request["statement_descriptor_suffix"]
    return {
        "invoice": {
            "customer": customer,
            "currency": currency,
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "description": request["description"],
            "metadata": metadata,
        },
        "item": {
            "customer": customer,
            "amount": request["amount_in_cents"],
            "currency": currency,
            "description": request["description"],
        },
        "intent": intent,
        "pay": {"off_session": True, "payment_method": request["payment_method_id"]},
    }


def _line_item(item: Mapping[str, Any]) -> SessionCreateParamsLineItem:
    params: SessionCreateParamsLineItem = {"quantity": item["quantity"]}
    if "price_id" in item:
        params["price"] = item["price_id"]
    else:
        params["price_data"] = _price_data(item["price_data"])
    if "adjustable_quantity" in item:
        params["adjustable_quantity"] = _adjustable_quantity(item["adjustable_quantity"])
    return params


def _price_data(price: Mapping[str, Any]) -> SessionCreateParamsLineItemPriceData:
    params: SessionCreateParamsLineItemPriceData = {
        "currency": price["currency"],
        "unit_amount": price["unit_amount_in_cents"],
        "product_data": {"name": price["product_name"]},
    }
    if recurring := price.get("recurring"):
        params["recurring"] = {"interval": recurring["interval"], "interval_count": recurring["interval_count"]}
    return params


def _adjustable_quantity(bounds: Mapping[str, int]) -> SessionCreateParamsLineItemAdjustableQuantity:
    params: SessionCreateParamsLineItemAdjustableQuantity = {"enabled": True}
    if "min" in bounds:
        params["minimum"] = bounds["min"]
    if "max" in bounds:
        params["maximum"] = bounds["max"]
    return params


def _custom_text(text: Mapping[str, str]) -> SessionCreateParamsCustomText:
    params: SessionCreateParamsCustomText = {}
    if "submit" in text:
        params["submit"] = {"message": text["submit"]}
    if "after_submit" in text:
        params["after_submit"] = {"message": text["after_submit"]}
    return params


def _discount(discount: Mapping[str, str]) -> SessionCreateParamsDiscount:
    params: SessionCreateParamsDiscount = {}
    if "coupon" in discount:
        params["coupon"] = discount["coupon"]
    if "promotion_code" in discount:
        params["promotion_code"] = discount["promotion_code"]
    return params
