"""The tables of the stand-ins' page, newest first, with a button for whatever can happen to what a row is about.

A new table is one more entry of `TABLES`: what there is, and how one of it becomes a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.sandbox.actions import RESOURCES, possible_actions
from app.sandbox.clock import iso
from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import payment_methods, refunds
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.money import display
from app.sandbox.world import World

ROWS_OF_A_PAGE = 20
# The second way of doing something: its label and what it is done with.
VARIANTS = {
    "refund": ("refund, pending", {"pending": "yes"}),
    "dispute": ("inquire", {"warning": "yes"}),
    "renew": ("renew, fails", {"fail": "yes"}),
    "retry": ("retry, fails", {"fail": "yes"}),
}
# Leaving the checkout page changes nothing, and how a method is to behave can't be typed: no buttons for these.
NO_BUTTONS = {("checkout", "cancel"), ("methods", "behave")}


@dataclass(frozen=True)
class Button:
    """Something that can be done: where a form is sent, and the fields that it has."""

    path: str
    label: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """What a row says under one heading; `look` is a class of the style sheet."""

    text: str
    look: str = ""
    href: str | None = None


@dataclass(frozen=True)
class Row:
    """One thing that there is: its cells by heading, what else it is found by, and what can be done, once asked."""

    cells: dict[str, Cell]
    buttons: Callable[[], list[Button]]
    words: tuple[str, ...] = ()

    def holds(self, text: str) -> bool:
        """Whether the text, in lower case, is a part of what the row says or is found by."""
        return any(text in each.lower() for each in (*(cell.text for cell in self.cells.values()), *self.words))


# Something that there is, and whose it is: a run of runs-service belongs to no account.
Found = tuple[Any, JsonObject]


@dataclass(frozen=True)
class Table:
    """All that there is of one kind, newest first, and how each becomes a row."""

    name: str
    title: str
    found: Callable[[World], list[Found]]
    row: Callable[[World, Any, JsonObject], Row]


@dataclass(frozen=True)
class Page:
    """The rows of a table that are shown, and where they stand among those that hold the text."""

    rows: list[Row]
    number: int
    last: int
    total: int


def page_of(world: World, table: Table, *, text: str, number: int) -> Page:
    """Return that page of the rows that hold the text, or the nearest one that there is."""
    rows = (table.row(world, *found) for found in table.found(world))
    held = [row for row in rows if row.holds(text.strip().lower())]
    last = max(1, -(-len(held) // ROWS_OF_A_PAGE))
    number = min(max(number, 1), last)
    start = (number - 1) * ROWS_OF_A_PAGE
    return Page(held[start : start + ROWS_OF_A_PAGE], number, last, len(held))


def buttons_of(kind: str, account: Account, found: JsonObject, *, path: str) -> list[Button]:
    """What can be done to an object now, by forms that are sent below the path."""
    buttons = []
    for action in possible_actions(kind, account, found):
        if (kind, action) in NO_BUTTONS:
            continue
        buttons.append(Button(f"{path}/{action}", action.replace("_", " ")))
        if action in VARIANTS:
            label, fields = VARIANTS[action]
            buttons.append(Button(f"{path}/{action}", label, fields))
    return buttons


def _objects(resource: str) -> Callable[[World], list[Found]]:
    def found(world: World) -> list[Found]:
        of_all = [
            (account, each) for account in world.accounts.by_id.values() for each in account.newest_first(resource)
        ]
        return sorted(of_all, key=lambda pair: pair[1].get("created", 0), reverse=True)

    return found


def _table(kind: str, title: str, describe: Callable[[JsonObject], tuple[str, str]], page: str | None = None) -> Table:
    """The table of one kind of Stripe's objects, of which `describe` tells the money and the state."""

    def row(world: World, account: Account, found: JsonObject) -> Row:
        amount, state = describe(found)
        cells = {
            "Id": Cell(found["id"], "id", page and page + found["id"]),
            "App": Cell(_apps(world, account)),
            "Amount": Cell(amount, "number"),
            "State": Cell(state.replace("_", " ")),
            "Created": Cell(format_time(found["created"])),
        }
        path = f"/actions/{kind}/{found['id']}"
        words = (account.id, *(found.get("metadata") or {}).values())
        return Row(cells, lambda: buttons_of(kind, account, found, path=path), words)

    return Table(kind, title, _objects(RESOURCES[kind]), row)


def _apps(world: World, account: Account) -> str:
    return ", ".join(world.keys.apps_of(account.id)) or account.id


def format_time(timestamp: float) -> str:
    """The time, in UTC, to the second."""
    return iso(timestamp)[:19].replace("T", " ")


def _of_session(session: JsonObject) -> tuple[str, str]:
    state = f"{session['status']}, {session['payment_status']}"
    if session["mode"] == "setup":
        return "none", f"{session['status']}, to save a method"
    return display(session["amount_total"], session["currency"]), state


def _of_charge(charge: JsonObject) -> tuple[str, str]:
    amount, state = _of_money(charge)
    if charge["paid"] and charge["amount_captured"] < charge["amount"]:
        state += f", {display(charge['amount_captured'], charge['currency'])} captured"
    if charge["amount_refunded"]:
        state += f", {display(charge['amount_refunded'], charge['currency'])} given back"
    return amount, state + ", disputed" * charge["disputed"]


def _of_refund(refund: JsonObject) -> tuple[str, str]:
    amount, state = _of_money(refund)
    return amount, "released, not refunded" if refunds.is_release(refund) else state


def _of_money(found: JsonObject) -> tuple[str, str]:
    return display(found["amount"], found["currency"]), found["status"]


def _of_invoice(invoice: JsonObject) -> tuple[str, str]:
    return display(invoice["total"], invoice["currency"]), invoice["status"]


def _of_subscription(subscription: JsonObject) -> tuple[str, str]:
    amount = sum(item["price"]["unit_amount"] * item["quantity"] for item in subscription["items"]["data"])
    state = subscription["status"] + ", ends with its period" * subscription["cancel_at_period_end"]
    return display(amount, subscription["currency"]), state


def _customer_row(world: World, account: Account, customer: JsonObject) -> Row:
    methods = list(payment_methods.of_customer(account, customer["id"]))
    cells = {
        "Id": Cell(customer["id"], "id"),
        "App": Cell(_apps(world, account)),
        "E-mail": Cell(customer["email"] or "none"),
        "Methods": Cell(", ".join(payment_methods.describe(each) for each in methods) or "none"),
        "Created": Cell(format_time(customer["created"])),
    }
    return Row(cells, list, (account.id, customer["name"] or "", *customer["metadata"].values()))


def _living(world: World) -> list[Found]:
    return [found for found in _objects("customer")(world) if "deleted" not in found[1]]


def _method_row(world: World, account: Account, method: JsonObject) -> Row:
    cells = {
        "Id": Cell(method["id"], "id"),
        "App": Cell(_apps(world, account)),
        "Method": Cell(payment_methods.describe(method)),
        "Customer": Cell(method["customer"] or "none", "id"),
        "Behaves as": Cell(account.methods[method["id"]]["kind"]),
        "Created": Cell(format_time(method["created"])),
    }
    path = f"/actions/methods/{method['id']}"
    return Row(cells, lambda: buttons_of("methods", account, method, path=path), (account.id,))


def _event_row(world: World, account: Account, event: JsonObject) -> Row:
    deliveries = world.outbox.states(event["id"])
    look = "failed" if any(each["lastStatus"] and each["state"] != "delivered" for each in deliveries) else ""
    cells = {
        "Type": Cell(event["type"]),
        "Object": Cell(event["data"]["object"]["id"], "id"),
        "App": Cell(_apps(world, account)),
        "Delivery": Cell(", ".join(_delivery(each) for each in deliveries) or "to nobody", look),
        "Created": Cell(format_time(event["created"])),
    }
    return Row(cells, lambda: [Button(f"/events/{event['id']}/deliver", "deliver again")], (event["id"],))


def _delivery(delivery: JsonObject) -> str:
    """How a delivery stands, and how often it was not taken."""
    if delivery["state"] != "pending" or not delivery["attempts"]:
        return str(delivery["state"])
    last = f", last {delivery['lastStatus']}" if delivery["lastStatus"] else ""
    return f"pending, not taken {delivery['attempts']} times{last}"


def _runs(world: World) -> list[Found]:
    return [(None, run) for run in world.runs.all()]


def _run_row(world: World, account: None, run: JsonObject) -> Row:
    cells = {
        "Run": Cell(run["id"], "id"),
        "App": Cell(run["appId"]),
        "Org": Cell(run["clerkOrgId"]),
        "Task": Cell(f"{run['serviceName']}: {run['taskName']}"),
        "Status": Cell(run["status"]),
        "Costs": Cell(", ".join(f"{cost['quantity']} {cost['costName']}" for cost in run["costs"]) or "none"),
        "Started": Cell(run["startedAt"][:19].replace("T", " ")),
    }
    return Row(cells, list)


def _told(world: World) -> list[Found]:
    return [(None, event) for event in world.told.all()]


def _told_row(world: World, account: None, event: JsonObject) -> Row:
    payment = event["data"].get("payment", {})
    cells = {
        "Type": Cell(event["type"]),
        "Event": Cell(event["id"], "id"),
        "App": Cell(payment.get("appId", "")),
        "Payment": Cell(payment.get("id", ""), "id"),
        "State": Cell(payment.get("status", "").replace("_", " ")),
        "Received": Cell(event["receivedAt"][:19].replace("T", " ")),
    }
    return Row(cells, list)


TABLES = (
    _table("checkout", "Checkout sessions", _of_session, page="/pay/"),
    _table("intents", "Payment intents", _of_money, page="/intent/"),
    _table("charges", "Charges", _of_charge),
    _table("refunds", "Refunds", _of_refund),
    _table("disputes", "Disputes", _of_money),
    _table("subscriptions", "Subscriptions", _of_subscription),
    _table("invoices", "Invoices", _of_invoice, page="/invoice/"),
    Table("customers", "Customers", _living, _customer_row),
    Table("methods", "Payment methods", _objects("payment_method"), _method_row),
    Table("events", "Events", _objects("event"), _event_row),
    Table("runs", "Runs", _runs, _run_row),
    Table("told", "Told to an app", _told, _told_row),
)
