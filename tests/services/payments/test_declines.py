"""What a caller is told of a declined charge, by Stripe's two codes."""

import pytest

from app.services.payments.declines import action_on, code_of

CASES = [
    ("authentication_required", "authentication_required", "authentication_required", "confirm_with_customer"),
    ("card_declined", "authentication_required", "authentication_required", "confirm_with_customer"),
    ("invoice_payment_intent_requires_action", None, "authentication_required", "confirm_with_customer"),
    ("card_declined", "insufficient_funds", "card_declined", "retry_later"),
    ("card_declined", "try_again_later", "card_declined", "retry_later"),
    ("card_declined", "issuer_not_available", "card_declined", "retry_later"),
    ("card_declined", "reenter_transaction", "card_declined", "retry_later"),
    ("processing_error", None, "processing_error", "retry_later"),
    ("card_declined", "lost_card", "card_declined", "new_payment_method"),
    ("card_declined", None, "card_declined", "new_payment_method"),
    ("expired_card", "expired_card", "expired_card", "new_payment_method"),
    ("something_new", "something_newer", "something_new", "new_payment_method"),
]


@pytest.mark.parametrize(("code", "decline_code", "told", "action"), CASES)
def test_it_tells_stripes_code_and_what_can_be_done(
    code: str, decline_code: str | None, told: str, action: str
) -> None:
    assert (code_of(code, decline_code), action_on(code, decline_code)) == (told, action)
