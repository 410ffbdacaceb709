"""Customers of organisations, what they pay with, and the pages on which they look after it."""

from typing import Any, ClassVar

from marshmallow import ValidationError, validates_schema
from marshmallow.fields import AwareDateTime, Boolean, Dict, Integer, List, Nested, String
from marshmallow.validate import OneOf

from app.schemas.base import (
    MAX_ID_LENGTH,
    NO_CONTROL,
    AppId,
    AppQuerySchema,
    CamelCaseSchema,
    CreatedSchema,
    RequestSchema,
    Text,
    Url,
)
from app.schemas.checkout import broken_rules_of_page
from app.schemas.payments import Email, Metadata

CUSTOMER_ID = {"example": "cus_3a1b2"}
METHOD_ID = {"example": "pm_3a1b2"}
PAGES = ("hosted", "embedded")


class OrgId(Text):
    """An organisation, which has to be named."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {"description": "An organisation of the app's.", "example": "org_1"}
        super().__init__(required=True, min_length=1, max_length=200, pattern=NO_CONTROL, metadata=metadata, **kwargs)


class PaymentMethodId(Text):
    """A saved payment method, which has to be named."""

    def __init__(self) -> None:
        super().__init__(required=True, min_length=1, max_length=MAX_ID_LENGTH, metadata=METHOD_ID)


class OrganisationSchema(RequestSchema):
    """Whose customer a request is about."""

    identity = ("org_id",)

    app_id = AppId(required=True)
    org_id = OrgId()


class OrganisationQuerySchema(AppQuerySchema):
    """Of which app the organisation in the path is."""

    identity = ("org_id",)


class CustomerEnsureSchema(OrganisationSchema):
    """A customer to make, or to bring up to date."""

    document: ClassVar = {"example": {"appId": "shop", "orgId": "org_1", "email": "a@b.example"}}

    email = Email(metadata={"description": "Where Stripe sends receipts.", "example": "a@b.example"})
    name = Text(max_length=256)
    description = Text(max_length=350)
    metadata = Metadata()


class CustomerEnsuredSchema(CreatedSchema):
    """The organisation's customer."""

    success = Boolean(required=True)
    customer_id = String(required=True, metadata=CUSTOMER_ID)
    created = Boolean(required=True, metadata={"description": "Whether this request is the one that has made it."})


class CustomerSchema(CamelCaseSchema):
    """An organisation's customer, as Stripe shows it now."""

    customer_id = String(required=True, metadata=CUSTOMER_ID)
    app_id = String(required=True, metadata={"example": "shop"})
    org_id = String(required=True, metadata={"example": "org_1"})
    email = String(required=True, allow_none=True, metadata={"example": "a@b.example"})
    name = String(required=True, allow_none=True)
    metadata = Dict(keys=String(), values=String(), required=True)
    default_payment_method_id = String(required=True, allow_none=True, metadata=METHOD_ID)
    created_at = AwareDateTime(required=True, metadata={"description": "ISO 8601 in UTC."})


class CustomerAnswerSchema(CamelCaseSchema):
    """A customer that was asked for."""

    customer = Nested(CustomerSchema, required=True)


class CustomerDeletedSchema(CamelCaseSchema):
    """A customer that is not there any more."""

    success = Boolean(required=True)
    deleted = Boolean(required=True, metadata={"description": "Whether there was one until now."})


class CustomerTransferSchema(OrganisationSchema):
    """A customer to hand to another organisation."""

    document: ClassVar = {"example": {"appId": "shop", "orgId": "org_1", "toOrgId": "org_2"}}

    to_org_id = OrgId()


class CustomerTransferredSchema(CreatedSchema):
    """A customer that was handed over."""

    success = Boolean(required=True)
    moved = Boolean(required=True, metadata={"description": "Whether there was one to hand over."})


class PaymentMethodQuerySchema(OrganisationQuerySchema):
    """Which of an organisation's payment methods to list."""

    type = Text(max_length=40, metadata={"description": "Only those of this type of Stripe's.", "example": "card"})


class PaymentMethodSchema(CamelCaseSchema):
    """A saved payment method. What only a card has is null for others."""

    payment_method_id = String(required=True, metadata=METHOD_ID)
    type = String(required=True, metadata={"example": "card"})
    brand = String(required=True, allow_none=True, metadata={"example": "visa"})
    last4 = String(required=True, allow_none=True, metadata={"example": "4242"})
    exp_month = Integer(required=True, allow_none=True, metadata={"example": 12})
    exp_year = Integer(required=True, allow_none=True, metadata={"example": 2030})
    country = String(required=True, allow_none=True, metadata={"example": "US"})
    is_default = Boolean(required=True)
    chargeable = Boolean(
        required=True, metadata={"description": "Whether it can be charged without the customer: cards and Link can."}
    )


class PaymentMethodListSchema(CamelCaseSchema):
    """An organisation's payment methods, first the one that would be charged without the customer."""

    payment_methods = List(Nested(PaymentMethodSchema), required=True)


class PaymentMethodNamedSchema(OrganisationSchema):
    """A saved payment method to do something with."""

    document: ClassVar = {"example": {"appId": "shop", "orgId": "org_1", "paymentMethodId": "pm_3a1b2"}}

    payment_method_id = PaymentMethodId()


class PaymentMethodChangedSchema(CreatedSchema):
    """A payment method with which something was done."""

    success = Boolean(required=True)
    payment_method_id = String(required=True, metadata=METHOD_ID)


class SetupPageSchema(OrganisationSchema):
    """A page to open on which a card is saved and nothing is charged."""

    document: ClassVar = {
        "example": {
            "appId": "shop",
            "orgId": "org_1",
            "successUrl": "https://shop.example/saved",
            "cancelUrl": "https://shop.example/cards",
        },
    }

    ui_mode = String(validate=OneOf(PAGES), metadata={"default": "hosted"})
    success_url = Url()
    cancel_url = Url()
    return_url = Url(metadata={"description": "Where the customer goes from an embedded page."})

    @validates_schema
    def _check_together(self, data: dict[str, Any], **_: Any) -> None:
        if broken := dict(broken_rules_of_page(data)):
            raise ValidationError({name: [sentence] for name, sentence in broken.items()})


class SetupPageOpenedSchema(CreatedSchema):
    """A page that was opened."""

    success = Boolean(required=True)
    session_id = String(required=True, metadata={"example": "cs_3a1b2"})
    url = String(
        required=True, allow_none=True, metadata={"format": "uri", "example": "https://checkout.stripe.com/c/cs_3a1b2"}
    )
    client_secret = String(
        required=True,
        allow_none=True,
        metadata={"description": "Of an embedded page, for the customer's browser only.", "example": None},
    )


class BillingPortalSchema(OrganisationSchema):
    """A page to open on which the customer looks after its cards and invoices."""

    document: ClassVar = {"example": {"appId": "shop", "orgId": "org_1", "returnUrl": "https://shop.example/account"}}

    return_url = Url(required=True)


class BillingPortalOpenedSchema(CreatedSchema):
    """A page that was opened."""

    success = Boolean(required=True)
    url = String(required=True, metadata={"format": "uri", "example": "https://billing.stripe.com/p/session/1"})
