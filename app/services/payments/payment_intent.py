"""A payment intent as Stripe shows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.services.events.stripe_object import id_of, required, text_of
from app.services.upstreams.stripe import Resource


@dataclass(frozen=True, kw_only=True)
class PaymentIntent:
    """What we use of Stripe's payment intent, and the whole of it.

    :param invoice: the fields of the answer that are about the invoice which it pays
    """

    id: str
    client_secret: str = field(repr=False)
    status: str
    stripe_object: Mapping[str, Any] = field(repr=False)
    invoice: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "PaymentIntent":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        return cls(
            id=required(id_of(answer["id"])),
            client_secret=required(text_of(answer["client_secret"])),
            status=required(text_of(answer["status"])),
            stripe_object=answer,
        )

    @property
    def brings_money(self) -> bool:
        """Whether its money has come, is held, or is on its way."""
        return self.status in ("succeeded", "requires_capture", "processing")


PAYMENT_INTENTS = Resource("/v1/payment_intents", "payment_intent", PaymentIntent.read)
