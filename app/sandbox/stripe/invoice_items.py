"""Invoice items: what an invoice is for. https://docs.stripe.com/api/invoiceitems."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import catalog
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import invalid, missing_parameter, refused
from app.sandbox.stripe.money import checked_amount, checked_currency
from app.sandbox.stripe.parameters import chosen


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Make an item of a draft, or of the customer's next invoice that includes pending ones.

    :raises StripeError: when it has no amount, or the invoice is no draft of the customer's in the item's currency
    """
    if "customer" not in parameters:
        raise missing_parameter("customer")
    customer = account.named("customer", parameters["customer"], param="customer")
    quantity = parameters.get("quantity", 1)
    unit, currency = _price(account, parameters)
    invoice = _draft(account, parameters, currency)
    now = account.clock.now()
    item = account.new(
        "invoiceitem",
        amount=unit * quantity,
        net_amount=unit * quantity,
        currency=currency,
        customer=customer["id"],
        date=now,
        invoice=invoice and invoice["id"],
        period=parameters.get("period", {"start": now, "end": now}),
        pricing={"price_details": None, "type": "price_details", "unit_amount_decimal": str(unit)},
        quantity=quantity,
        **chosen(parameters, "description", "discountable", "metadata"),
    )
    account.emit("invoiceitem.created", item)
    if invoice is not None:
        total(account, invoice)
    return item


def delete(account: Account, item: JsonObject) -> JsonObject:
    """Take away an item that no invoice, or a draft, has.

    :raises StripeError: when its invoice is no draft any more
    """
    invoice = account.get("invoice", item["invoice"] or "")
    if item["invoice"] is not None and (invoice is None or invoice["status"] != "draft"):
        raise _not_editable()
    del account.objects["invoiceitem"][item["id"]]
    account.emit("invoiceitem.deleted", item)
    if invoice is not None:
        total(account, invoice)
    return {"id": item["id"], "object": "invoiceitem", "deleted": True}


def take_pending(account: Account, invoice: JsonObject) -> None:
    """Put all that wait for the customer's next invoice into this one."""
    pending = list(account.where("invoiceitem", customer=invoice["customer"], invoice=None))
    if pending:
        invoice["currency"] = pending[0]["currency"]
    for item in pending:
        if item["currency"] == invoice["currency"]:
            item["invoice"] = invoice["id"]
    total(account, invoice)


def total(account: Account, invoice: JsonObject) -> None:
    """Let a draft show its items, the newest first, and what they come to."""
    add_lines(account, invoice, list(account.where("invoiceitem", invoice=invoice["id"])))


def add_lines(account: Account, invoice: JsonObject, items: list[JsonObject]) -> None:
    """Set the lines of the invoice, and its amounts.

    :param items: each an amount, a description and a quantity, and with an id if it is an invoice item
    """
    lines = [_line(account, invoice, item) for item in items]
    url = f"/v1/invoices/{invoice['id']}/lines"
    invoice["lines"] |= {"data": lines, "total_count": len(lines), "url": url}
    amount = sum(line["amount"] for line in lines)
    invoice |= dict.fromkeys(("amount_due", "amount_remaining"), max(amount, 0))
    invoice |= dict.fromkeys(("subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax"), amount)


def _line(account: Account, invoice: JsonObject, item: JsonObject) -> JsonObject:
    details = {"invoice_item": item.get("id"), "proration": False, "proration_details": None, "subscription": None}
    return account.build(
        "line_item",
        invoice=invoice["id"],
        amount=item["amount"],
        subtotal=item["amount"],
        currency=invoice["currency"],
        description=item["description"],
        parent={"invoice_item_details": details, "subscription_item_details": None, "type": "invoice_item_details"},
        period=item.get("period", {"start": invoice["created"], "end": invoice["created"]}),
        quantity=item["quantity"],
    )


def _price(account: Account, parameters: JsonObject) -> tuple[int, str]:
    """What one of the item costs, in which currency."""
    if "amount" in parameters and "quantity" in parameters:
        raise invalid("You may only specify one of these parameters: amount, quantity.", param="amount")
    if "price_data" in parameters:
        price = catalog.build_price(account, parameters["price_data"], path="price_data").price
        return price["unit_amount"], price["currency"]
    if "pricing" in parameters:
        price = account.named("price", parameters["pricing"].get("price", ""), param="pricing[price]")
        return price["unit_amount"], price["currency"]
    if "amount" not in parameters:
        raise missing_parameter("amount")
    if "currency" not in parameters:
        raise missing_parameter("currency")
    currency = checked_currency(parameters["currency"])
    checked_amount(abs(parameters["amount"]), currency, param="amount", least=0)
    return parameters["amount"], currency


def _draft(account: Account, parameters: JsonObject, currency: str) -> JsonObject | None:
    if "invoice" not in parameters:
        return None
    invoice = account.named("invoice", parameters["invoice"], param="invoice")
    if invoice["status"] != "draft":
        raise _not_editable()
    if invoice["customer"] != parameters["customer"]:
        message = f"The invoice {invoice['id']} does not belong to the customer {parameters['customer']}."
        raise invalid(message, param="invoice")
    if invoice["currency"] != currency:
        message = f"The currency of the invoice item ({currency}) must be the invoice's ({invoice['currency']})."
        raise invalid(message, param="currency")
    return invoice


def _not_editable() -> Exception:
    return refused("Invalid invoice: This invoice is no longer editable", code="invoice_not_editable")
