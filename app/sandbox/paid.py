"""What the service knows of a checkout session's payment, for the page that a customer comes back to."""

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import orjson
import urllib3

from app.sandbox.json_object import JsonObject
from app.sandbox.world import World

TIMEOUT_SECONDS = 5
# What the service says of a payment before it has heard anything of it from Stripe, and before it has heard of money:
# of a customer who paid after a declined try, it may have heard of the try only.
UNTRIED = ("creating", "checkout_created")
UNPAID = (
    *UNTRIED,
    "requires_payment_method",
    "requires_confirmation",
    "requires_action",
    "processing",
    "pending",
    "failed",
)

_http = urllib3.PoolManager(retries=False, timeout=TIMEOUT_SECONDS)


@dataclass(frozen=True)
class Question:
    """What the service is asked: the address of a payment's status, and the key."""

    url: str
    api_key: str


@dataclass(frozen=True)
class Answer:
    """The payment, as the service shows it, or the sentence that says why there is none."""

    payment: JsonObject | None = None
    problem: str | None = None

    def is_behind(self, session: JsonObject) -> bool:
        """Whether the service knows less of the payment than Stripe does."""
        known = UNPAID if session["payment_status"] == "paid" else UNTRIED
        return self.payment is not None and self.payment["status"] in known


def question(world: World, session: JsonObject) -> Question | None:
    """Return what to ask; None when the session isn't the service's, or no webhooks say where the service is."""
    payment_id = session["metadata"].get("paymentId")
    if payment_id is None or not world.outbox.endpoints:
        return None
    service = urlsplit(world.outbox.endpoints[0].url)
    url = f"{service.scheme}://{service.netloc}/status/{quote(payment_id, safe='')}"
    return Question(url, world.settings.service_api_key)


def ask(question: Question | None) -> Answer:
    """Ask the service, which has `TIMEOUT_SECONDS` to answer."""
    if question is None:
        return Answer(problem="The service didn't make this checkout session, or no webhook endpoint says where it is.")
    try:
        response = _http.request("GET", question.url, headers={"X-API-Key": question.api_key})
    except urllib3.exceptions.HTTPError:
        return Answer(problem="The service doesn't answer.")
    if response.status != 200:
        return Answer(problem=f"The service answers with the status {response.status}.")
    return Answer(payment=orjson.loads(response.data)["payment"])
