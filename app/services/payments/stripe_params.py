"""What Stripe is asked for: pure functions from an operation to Stripe's parameters."""

from collections.abc import Mapping

from stripe.params import PaymentIntentCreateParams
from stripe.params.checkout import SessionCreateParams, SessionCreateParamsDiscount

from app.services.operations.operation import HeldOperation

DEFAULT_MODE = "payment"
DEFAULT_CURRENCY = "usd"


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
        "line_items": [{"price": item["price_id"], "quantity": item["quantity"]} for item in request["line_items"]],
        "success_url": request["success_url"],
        "cancel_url": request["cancel_url"],
        "metadata": metadata,
    }
    if mode == "subscription":
        params["subscription_data"] = {"metadata": metadata}
    else:
        params["payment_intent_data"] = {"metadata": metadata}
        if "capture_method" in request:
            params["payment_intent_data"]["capture_method"] = request["capture_method"]
    if "customer_id" in request:
        params["customer"] = request["customer_id"]
    elif "customer_email" in request:
        params["customer_email"] = request["customer_email"]
    if "discounts" in request:
        params["discounts"] = [_discount(discount) for discount in request["discounts"]]
    return params


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
    return params


def _discount(discount: Mapping[str, str]) -> SessionCreateParamsDiscount:
    params: SessionCreateParamsDiscount = {}
    if "coupon" in discount:
        params["coupon"] = discount["coupon"]
    if "promotion_code" in discount:
        params["promotion_code"] = discount["promotion_code"]
    return params
