"""A caller that knows the service by the client that is generated of its document."""

import sys
from uuid import UUID

from stripe_service_client import AuthenticatedClient
from stripe_service_client.api.payments import create_checkout
from stripe_service_client.api.status import get_payment_status
from stripe_service_client.models import (
    CheckoutCreate,
    CheckoutCreated,
    Error,
    LineItem,
    PaymentDetails,
)

base_url, api_key = sys.argv[1:]
checkout = CheckoutCreate(
    app_id="shop",
    org_id="org_1",
    line_items=[LineItem(price_id="price_sandbox", quantity=1)],
    success_url="http://localhost:3000/ok",
    cancel_url="http://localhost:3000/cart",
)
with AuthenticatedClient(base_url, token=api_key, prefix="", auth_header_name="X-API-Key") as service:
    created = create_checkout.sync(client=service, body=checkout)
    assert isinstance(created, CheckoutCreated), created
    status = get_payment_status.sync(created.payment_id, client=service)
    assert isinstance(status, PaymentDetails), status
    print(created.payment_id, status.payment.status)
    unknown = get_payment_status.sync_detailed(UUID(int=0), client=service)
    assert isinstance(unknown.parsed, Error), unknown
    print(unknown.status_code.value, unknown.parsed.code)
