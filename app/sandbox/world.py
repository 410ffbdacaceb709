"""The world of the sandbox: everything that the stand-ins know, behind one lock."""

import threading
from typing import cast

from flask import current_app

from app.sandbox.clock import Clock
from app.sandbox.connection import Epoch
from app.sandbox.faults import FaultBook
from app.sandbox.json_object import JsonObject
from app.sandbox.key_ring import KeyRing
from app.sandbox.ledger import Ledger
from app.sandbox.run_book import RunBook
from app.sandbox.settings import SandboxSettings
from app.sandbox.stripe.account import Accounts
from app.sandbox.stripe.idempotency import KeysInUse
from app.sandbox.stripe.reactions import react
from app.sandbox.told import Told
from app.sandbox.webhooks import Outbox

EXTENSION = "sandbox.world"


class World:
    """What one sandbox knows. Whoever reads or changes it holds `lock`."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        self.lock = threading.RLock()
        self.changed = threading.Event()
        self.epoch = Epoch()
        self.clock = Clock()
        self.ledger = Ledger()
        self.faults = FaultBook()
        self.keys_in_use = KeysInUse()
        self.outbox = Outbox(self.lock, self.clock, self.ledger, settings)
        self.accounts = Accounts(self.clock, self.outbox.publish, react)
        self.keys = KeyRing(self.accounts, settings.stripe_key)
        self.runs = RunBook(self.clock)
        self.told = Told()

    def reset(self) -> None:
        """Forget everything; whoever waits in the old epoch gives up."""
        self.epoch.end()
        self.epoch = Epoch()
        world = (self.clock, self.ledger, self.faults, self.outbox, self.accounts, self.keys, self.runs, self.told)
        for part in world:
            part.clear()
        self.outbox.drain()

    def to_state(self) -> JsonObject:
        """What survives a restart: all but the ledger, the faults, and what an app was told."""
        return {
            "clock": self.clock.offset_seconds,
            "stripe": self.accounts.to_state(),
            "keys": self.keys.to_state(),
            "runs": self.runs.to_state(),
            "webhooks": self.outbox.to_state(),
        }

    def load(self, state: JsonObject) -> None:
        self.clock.offset_seconds = state["clock"]
        self.accounts.load(state["stripe"])
        self.keys.load(state["keys"])
        self.runs.load(state["runs"])
        self.outbox.load(state["webhooks"], self.accounts)


def current_world() -> World:
    """The world of the sandbox that is answering a request."""
    return cast(World, current_app.extensions[EXTENSION])
