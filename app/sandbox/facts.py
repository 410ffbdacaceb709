"""What somebody who tries the service has to know: addresses, prices, test cards and keys."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.sandbox.settings import SandboxSettings
from app.sandbox.stripe.cards import ACTIONS, BANK_ACCOUNT, BRANDS, DECLINES, LINK


@dataclass(frozen=True)
class Fact:
    """What something is for, and the words that are typed for it; `note` says what these don't."""

    name: str
    words: tuple[str, ...]
    note: str = ""


def service_url(settings: SandboxSettings) -> str:
    """Return where the service listens: it is who the webhooks go to."""
    parts = urlsplit(settings.webhook_url)
    return f"{parts.scheme}://{parts.netloc}"


def all_facts(settings: SandboxSettings, *, own_url: str) -> list[Fact]:
    """Return them in the order in which they are needed.

    :param own_url: where the stand-ins are reached
    """
    return [
        Fact("Service", (service_url(settings),)),
        Fact("Stand-ins", (own_url, f"{own_url}/key-service", f"{own_url}/runs-service"), "Stripe is the first"),
        *_keys(settings),
        Fact("Price, once", ("price_sandbox",), "20.00 USD, in every account from the start"),
        Fact("Price, each month", ("price_sandbox_monthly",), "20.00 USD, in every account from the start"),
        Fact("Cards that pay", _cards(BRANDS), "to confirm an intent with; the pages have buttons"),
        Fact("Cards that are declined", _cards(DECLINES)),
        Fact("Cards whose bank asks the customer", _cards(ACTIONS)),
        Fact("Other methods", (LINK, BANK_ACCOUNT), "to attach to a customer; a bank account is paid from in days"),
    ]


def _keys(settings: SandboxSettings) -> list[Fact]:
    stripe_key = ("sk_test_sandbox_<appId>",) if settings.stripe_key is None else ()
    return [
        _key("X-API-Key of callers", "service_api_key", "STRIPE_SERVICE_API_KEY", settings),
        Fact("Stripe key of an app", stripe_key, "" if stripe_key else "the one of SANDBOX_STRIPE_KEY"),
        _key("Secret of webhooks", "webhook_secret", "STRIPE_WEBHOOK_SECRET", settings),
        Fact("Secret of an app's own webhooks", ("whsec_sandbox_<appId>",)),
        _key("X-API-Key of key-service", "key_service_api_key", "KEY_SERVICE_API_KEY", settings),
        _key("X-API-Key of runs-service", "runs_service_api_key", "RUNS_SERVICE_API_KEY", settings),
    ]


def _key(name: str, setting: str, variable: str, settings: SandboxSettings) -> Fact:
    """Show what the sandbox has made up; what somebody has set may be the key of a real service."""
    value = str(getattr(settings, setting))
    if value == getattr(SandboxSettings, setting):
        return Fact(name, (value,))
    return Fact(name, (), f"the one of {variable}")


def _cards(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"pm_card_{kind}" for kind in sorted(kinds))
