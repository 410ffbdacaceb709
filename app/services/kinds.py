"""All kinds of operation, by the names under which they are stored."""

from collections.abc import Mapping
from typing import Any

from app.services.operations.kind import Kind
from app.services.payments.actions import CANCEL, CAPTURE, REFUND
from app.services.payments.kinds import CREATE_CHECKOUT_SESSION, CREATE_PAYMENT_INTENT
from app.services.subscriptions.actions import CANCEL_SUBSCRIPTION, CHANGE_SUBSCRIPTION, RESUME_SUBSCRIPTION

KINDS: Mapping[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        *(CREATE_CHECKOUT_SESSION, CREATE_PAYMENT_INTENT, REFUND, CAPTURE, CANCEL),
        *(CANCEL_SUBSCRIPTION, RESUME_SUBSCRIPTION, CHANGE_SUBSCRIPTION),
    )
}
