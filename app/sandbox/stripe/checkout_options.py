"""What a checkout session may be asked to be, and which options go together. https://docs.stripe.com/api/checkout/sessions/create."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import texts
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import invalid, missing_parameter

LIFETIME_SECONDS = 24 * 3600
SHORTEST_LIFETIME_SECONDS = 30 * 60
MAX_LINE_ITEMS = 100
MAX_CUSTOM_TEXT_LENGTH = 1200
MAX_REFERENCE_LENGTH = 200
MAX_TRIAL_DAYS = 730
UI_MODES = ("hosted_page", "embedded_page")
MODE_DATA = {
    "payment_intent_data": "payment",
    "setup_intent_data": "setup",
    "subscription_data": "subscription",
}
ALTERNATIVES = (
    ("customer", "customer_email"),
    ("customer", "customer_creation"),
    ("discounts", "allow_promotion_codes"),
)
# The parameters that a page of the app's own has no use for, and those that Stripe's page hasn't.
ONLY_HOSTED = ("success_url", "cancel_url")
ONLY_EMBEDDED = ("return_url", "redirect_on_completion")
COPIED = (
    "allow_promotion_codes",
    "billing_address_collection",
    "client_reference_id",
    "customer",
    "customer_creation",
    "customer_email",
    "locale",
    "metadata",
    "submit_type",
    "ui_mode",
)


def check(account: Account, parameters: JsonObject) -> None:
    """:raises StripeError: when an option is wrong, or doesn't go with another"""
    _check_mode(parameters)
    _check_page(parameters)
    for first, second in ALTERNATIVES:
        if first in parameters and second in parameters:
            raise invalid(f"You may only specify one of these parameters: {first}, {second}.", param=first)
    if len(parameters.get("discounts", [])) > 1:
        raise invalid("`discounts` can have at most 1 element.", param="discounts")
    if "customer" in parameters:
        account.named("customer", parameters["customer"], param="customer")
    _check_expiry(account, parameters)
    _check_texts(parameters)
    _check_trial(parameters)
    _check_tax(account, parameters)


def _check_mode(parameters: JsonObject) -> None:
    mode = parameters.get("mode")
    if not mode:
        raise missing_parameter("mode")
    for name, only_mode in MODE_DATA.items():
        if name in parameters and mode != only_mode:
            raise invalid(f"You can not pass `{name}` in `{mode}` mode.", param=name)
    if mode != "payment" and parameters.get("invoice_creation", {}).get("enabled"):
        message = (
            "You can only enable invoice creation when `mode` is set to `payment`. Invoices are created automatically "
            "when `mode` is set to `subscription`."
        )
        raise invalid(message, param="invoice_creation")
    if mode != "setup":
        _check_number_of_items(parameters)
        return
    if "line_items" in parameters:
        raise invalid("You can not pass `line_items` in `setup` mode.", param="line_items")
    if "customer" not in parameters:
        raise missing_parameter("customer")
    if "currency" not in parameters and "allowed_payment_method_types" not in parameters:
        raise missing_parameter("currency")


def _check_number_of_items(parameters: JsonObject) -> None:
    if not parameters.get("line_items"):
        raise missing_parameter("line_items")
    if len(parameters["line_items"]) > MAX_LINE_ITEMS:
        raise invalid(f"`line_items` can have at most {MAX_LINE_ITEMS} elements.", param="line_items")


def _check_page(parameters: JsonObject) -> None:
    """https://docs.stripe.com/payments/checkout/custom-success-page?payment-ui=embedded-form"""
    ui_mode = parameters.get("ui_mode", "hosted_page")
    if ui_mode not in UI_MODES:
        raise invalid(f"The sandbox has no sessions in `{ui_mode}` ui_mode.", param="ui_mode")
    foreign = ONLY_EMBEDDED if ui_mode == "hosted_page" else ONLY_HOSTED
    for name in (name for name in foreign if name in parameters):
        raise invalid(f"You can not pass `{name}` when `ui_mode` is `{ui_mode}`.", param=name)
    stays = parameters.get("redirect_on_completion") == "never"
    if stays and "return_url" in parameters:
        raise invalid("You can not pass `return_url` when `redirect_on_completion` is `never`.", param="return_url")
    needed = "success_url" if ui_mode == "hosted_page" else "return_url"
    if not stays and not parameters.get(needed):
        raise missing_parameter(needed)
    for name in (*ONLY_HOSTED, "return_url"):
        if not parameters.get(name, "http://").lower().startswith(("http://", "https://")):
            raise invalid("Not a valid URL", param=name, code="url_invalid")


def _check_expiry(account: Account, parameters: JsonObject) -> None:
    lifetime = parameters.get("expires_at", account.clock.now() + LIFETIME_SECONDS) - account.clock.now()
    if not SHORTEST_LIFETIME_SECONDS <= lifetime <= LIFETIME_SECONDS:
        message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation."
        raise invalid(message, param="expires_at")


def _check_texts(parameters: JsonObject) -> None:
    for name, shown in (parameters.get("custom_text") or {}).items():
        if shown and len(shown.get("message", "")) > MAX_CUSTOM_TEXT_LENGTH:
            message = f"Invalid string: must be at most {MAX_CUSTOM_TEXT_LENGTH} characters"
            raise invalid(message, param=f"custom_text[{name}][message]")
    if len(parameters.get("client_reference_id", "")) > MAX_REFERENCE_LENGTH:
        message = f"Invalid string: must be at most {MAX_REFERENCE_LENGTH} characters"
        raise invalid(message, param="client_reference_id")
    data = parameters.get("payment_intent_data", {})
    texts.check_email(parameters, "customer_email")
    texts.check_email(data, "receipt_email", within="payment_intent_data")
    texts.check_suffix(data, within="payment_intent_data")


def _check_trial(parameters: JsonObject) -> None:
    days = parameters.get("subscription_data", {}).get("trial_period_days", 1)
    param = "subscription_data[trial_period_days]"
    if days < 1:
        message = "This value must be greater than or equal to 1."
        raise invalid(message, param=param, code="parameter_invalid_integer")
    if days > MAX_TRIAL_DAYS:
        raise invalid(f"The maximum number of trial period days is {MAX_TRIAL_DAYS} (2 years).", param=param)


def _check_tax(account: Account, parameters: JsonObject) -> None:
    """Stripe Tax needs to know where the customer is. https://docs.stripe.com/tax/checkout"""
    customer = account.get("customer", parameters.get("customer", ""))
    if customer is None or not parameters.get("automatic_tax", {}).get("enabled"):
        return
    saved = parameters.get("customer_update", {})
    if not customer["address"] and "auto" not in {saved.get("address"), saved.get("shipping")}:
        message = (
            "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid address to "
            "the Customer or set either `customer_update[address]` to 'auto' or `customer_update[shipping]` to 'auto' "
            "to save the address entered in Checkout to the Customer."
        )
        raise invalid(message, code="customer_tax_location_invalid")


def shown(parameters: JsonObject) -> JsonObject:
    """What a session shows of what it was asked to be."""
    fields: JsonObject = {name: parameters[name] for name in COPIED if name in parameters}
    fields |= {name: parameters.get(name) for name in (*ONLY_HOSTED, "return_url")}
    if parameters.get("ui_mode") == "embedded_page":
        fields["redirect_on_completion"] = parameters.get("redirect_on_completion", "always")
    if "allowed_payment_method_types" in parameters:
        fields["payment_method_types"] = parameters["allowed_payment_method_types"]
    for name in ("invoice_creation", "saved_payment_method_options"):
        if name in parameters:
            fields[name] = parameters[name]
    if parameters.get("automatic_tax", {}).get("enabled"):
        fields["automatic_tax"] = {
            "enabled": True,
            "liability": {"type": "self"},
            "provider": "stripe",
            "status": "requires_location_inputs",
        }
    return fields
