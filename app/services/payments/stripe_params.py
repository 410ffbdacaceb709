"""What Stripe is asked for: pure functions from a validated request to Stripe's parameters."""

from collections.abc import Mapping
from typing import Any

from stripe.params import PaymentIntentCreateParams
from stripe.params.checkout import SessionCreateParams, SessionCreateParamsDiscount


def payment_metadata(
    caller: Mapping[str, str], *, payment_id: str, app_id: str, run_id: str | None, org_id: str | None
) -> dict[str, str]:
    """The caller's metadata and our four keys, by which an event finds its payment; ours win."""
    ours = {"paymentId": payment_id, "appId": app_id, "runId": run_id, "orgId": org_id}
    return {**caller, **{key: value for key, value in ours.items() if value is not None}}


def checkout_session_params(request: Mapping[str, Any], metadata: dict[str, str]) -> SessionCreateParams:
    """https://docs.stripe.com/api/checkout/sessions/create

    The metadata goes onto what the session makes as well: an intent or a subscription doesn't inherit it.
    """
    params: SessionCreateParams = {
        "mode": request["mode"],
        "line_items": [{"price": item["price_id"], "quantity": item["quantity"]} for item in request["line_items"]],
        "success_url": request["success_url"],
        "cancel_url": request["cancel_url"],
        "metadata": metadata,
    }
    if request["mode"] == "subscription":
        params["subscription_data"] = {"metadata": metadata}
    else:
        params["payment_intent_data"] = {"metadata": metadata}
    if "customer_id" in request:
        params["customer"] = request["customer_id"]
    elif "customer_email" in request:
        params["customer_email"] = request["customer_email"]
    if "discounts" in request:
        params["discounts"] = [_discount(discount) for discount in request["discounts"]]
    return params


def payment_intent_params(request: Mapping[str, Any], metadata: dict[str, str]) -> PaymentIntentCreateParams:
    """https://docs.stripe.com/api/payment_intents/create"""
    params: PaymentIntentCreateParams = {
        "amount": request["amount_in_cents"],
        "currency": request["currency"],
        "automatic_payment_methods": {"enabled": True},
        "metadata": metadata,
    }
    if "customer_id" in request:
        params["customer"] = request["customer_id"]
    if "description" in request:
        params["description"] = request["description"]
    return params


def _discount(discount: Mapping[str, str]) -> SessionCreateParamsDiscount:
    params: SessionCreateParamsDiscount = {}
    if "coupon" in discount:
        params["coupon"] = discount["coupon"]
    if "promotion_code" in discount:
        params["promotion_code"] = discount["promotion_code"]
    return params
