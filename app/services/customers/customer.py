"""A customer as Stripe shows it. What is personal is read from there each time: the service keeps the id alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.services.events.stripe_object import dig, id_of, optional, required, text_of
from app.services.upstreams.stripe import Resource

# The key of its metadata that holds the id of its row, and all keys that the service sets.
ROW = "customerRow"
OWN_METADATA = ("appId", "orgId", ROW)


@dataclass(frozen=True, kw_only=True)
class Customer:
    """What we use of Stripe's customer. https://docs.stripe.com/api/customers/object

    :param is_deleted: Stripe goes on showing the id of a deleted one
    """

    id: str
    is_deleted: bool
    email: str | None = field(repr=False)
    name: str | None = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)
    default_payment_method_id: str | None

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Customer":
        """:raises KeyError, TypeError, ValueError: when it isn't one."""
        metadata = dict(answer.get("metadata") or {})
        return cls(
            id=required(id_of(answer["id"])),
            is_deleted=answer.get("deleted") is True,
            email=optional(text_of, answer.get("email")),
            name=optional(text_of, answer.get("name")),
            metadata={key: value for key, value in metadata.items() if key not in OWN_METADATA},
            default_payment_method_id=id_of(dig(answer, "invoice_settings", "default_payment_method")),
        )


CUSTOMERS = Resource("/v1/customers", "customer", Customer.read)
