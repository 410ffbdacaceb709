"""The settings of the sandbox, all of which have a default that works on one machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from app.sandbox.stripe.errors import LIVE_KEYS


@dataclass(frozen=True)
class SandboxSettings:
    """Where the sandbox listens, what it accepts and where it delivers.

    :param port: 0 picks a free one
    :param stripe_key: the key that key-service hands to every app; None makes up one for each app
    :param service_api_key: what the service is asked with for a payment's status
    :param data_file: where the state survives a restart; None keeps it in memory only
    """

    host: str = "127.0.0.1"
    port: int = 3012
    stripe_key: str | None = None
    data_file: Path | None = None
    webhook_url: str = "http://127.0.0.1:3011/webhooks/stripe"
    webhook_secret: str = "whsec_sandbox"
    service_api_key: str = "sandbox-api-key"
    key_service_api_key: str = "sandbox-key-service"
    runs_service_api_key: str = "sandbox-runs-service"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "SandboxSettings":
        """Read the settings from environment variables; an empty one counts as unset.

        :raises ValueError: when a value is unusable; its message is one sentence for the person who set it
        """
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        data_file = given.get("SANDBOX_DATA")
        return cls(
            host=given.get("SANDBOX_HOST", cls.host),
            port=_port(given.get("SANDBOX_PORT", str(cls.port))),
            stripe_key=_stripe_key(given.get("SANDBOX_STRIPE_KEY")),
            data_file=Path(data_file) if data_file else None,
            webhook_url=_url(given.get("SANDBOX_WEBHOOK_URL", cls.webhook_url)),
            webhook_secret=_first(given, "STRIPE_WEBHOOK_SECRET", cls.webhook_secret),
            key_service_api_key=given.get("KEY_SERVICE_API_KEY", cls.key_service_api_key),
            runs_service_api_key=given.get("RUNS_SERVICE_API_KEY", cls.runs_service_api_key),
            service_api_key=_first(given, "STRIPE_SERVICE_API_KEY", cls.service_api_key),
        )


def _port(value: str) -> int:
    if value.isascii() and value.isdigit() and int(value) <= 65535:
        return int(value)
    raise ValueError(f"SANDBOX_PORT must be a port number from 0 to 65535, not {value!r}.")


def _stripe_key(value: str | None) -> str | None:
    if value is not None and value.startswith(LIVE_KEYS):
        raise ValueError("SANDBOX_STRIPE_KEY is a live key, which must never be given to a stand-in: use a test key.")
    if value is None or value.startswith(("sk_", "rk_")):
        return value
    raise ValueError("SANDBOX_STRIPE_KEY must be a Stripe key, which starts with sk_ or rk_.")


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme in {"http", "https"} and parts.netloc:
        return value
    raise ValueError(f"SANDBOX_WEBHOOK_URL must be an http or https URL, not {value!r}.")


def _first(given: Mapping[str, str], name: str, default: str) -> str:
    for secret in given.get(name, default).split(","):
        if secret.strip():
            return secret.strip()
    raise ValueError(f"{name} must hold at least one secret.")
