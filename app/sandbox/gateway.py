"""The gateway: every request passes here, for its fault, its turn under the lock and its entry in the ledger."""

import socket
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from werkzeug.wrappers import Request, Response

from app.sandbox import connection, ledger
from app.sandbox.fault_answers import answer_of
from app.sandbox.faults import Fault
from app.sandbox.ledger import Entry
from app.sandbox.stripe.idempotency import ANSWER_INSTEAD
from app.sandbox.world import World

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Each service: what its paths begin with, and how much of that isn't a part of its own path.
SERVICES = {
    "stripe": ("/v1/", ""),
    "key-service": ("/key-service/", "/key-service"),
    "runs-service": ("/runs-service/", "/runs-service"),
}
UNANSWERED = ("hang", "reset")
# A page that asks the service takes the lock itself, and lets go of it before it asks.
UNLOCKED = "/paid/"
BELOW_HTTP = (*UNANSWERED, "drip", "drip_headers", "half_body")


class Gateway:
    """The WSGI application in front of the Flask application."""

    def __init__(self, app: "WSGIApplication", world: World) -> None:
        self._app = app
        self._world = world

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        incoming = Request(environ)
        entry = _entry_of(incoming)
        response = self._execute(incoming) if entry is None else self._serve(incoming, entry)
        return response(environ, start_response)

    def _serve(self, incoming: Request, entry: Entry) -> Response:
        incoming.environ[ledger.ENVIRON_KEY] = entry
        with self._world.lock:
            fault = self._world.faults.take(entry.service, entry.method, entry.path)
            if fault is None:
                return self._execute(incoming, entry)
        entry.fault = fault.kind
        if fault.kind == "delay":
            return self._delay(incoming, entry, fault)
        sent = self._answer_wrongly(incoming, entry, fault)
        if fault.kind in BELOW_HTTP:
            self._send_wrongly(incoming.environ[connection.ENVIRON_KEY], sent, fault)
            raise ConnectionAbortedError(f"The fault {fault.id} ends the connection.")
        return sent

    def _execute(self, incoming: Request, entry: Entry | None = None) -> Response:
        """Let the Flask application answer, alone in the world unless it is to ask the service."""
        with nullcontext() if incoming.path.startswith(UNLOCKED) else self._world.lock:
            response = Response.from_app(self._app, incoming.environ, buffered=True)
            if entry is not None:
                self._enter(entry, response)
            if incoming.method != "GET":
                self._world.changed.set()
            return response

    def _enter(self, entry: Entry, response: Response) -> None:
        entry.status = None if entry.fault in UNANSWERED else response.status_code
        self._world.ledger.append(entry, at=self._world.clock.iso())

    def _delay(self, incoming: Request, entry: Entry, fault: Fault) -> Response:
        """Execute before or after the delay; until the answer, the request's idempotency key is in use."""
        world = self._world
        with world.lock:
            response = self._execute(incoming, entry) if fault.executed else None
            world.keys_in_use.add(incoming)
            epoch = world.epoch
        passed = epoch.wait(fault.seconds)
        with world.lock:
            world.keys_in_use.remove(incoming)
            if not passed:
                raise ConnectionAbortedError("The sandbox was reset.")
            return response or self._execute(incoming, entry)

    def _answer_wrongly(self, incoming: Request, entry: Entry, fault: Fault) -> Response:
        """Return what the client is to get: the fault's answer, or the truth if that is sent in a wrong way."""
        instead = answer_of(fault)
        if not fault.executed:
            with self._world.lock:
                self._enter(entry, instead)
            return instead
        if fault.kind == "status" and fault.status >= 500:
            incoming.environ[ANSWER_INSTEAD] = instead
        with self._world.lock:
            truth = self._execute(incoming, entry)
            if fault.kind in BELOW_HTTP:
                return truth
            entry.status = instead.status_code
        return instead

    def _send_wrongly(self, client: socket.socket, response: Response, fault: Fault) -> None:
        epoch = self._world.epoch
        head, body = connection.raw_answer(response)
        if fault.kind == "hang":
            epoch.wait(fault.seconds, client)
        elif fault.kind == "reset":
            connection.reset(client)
        elif fault.kind == "half_body":
            client.sendall(head + body[: len(body) // 2])
        elif fault.kind == "drip":
            client.sendall(head)
            connection.drip(client, body, pause_seconds=fault.seconds, epoch=epoch)
        else:
            connection.drip(client, head + body, pause_seconds=fault.seconds, epoch=epoch)


def _entry_of(incoming: Request) -> Entry | None:
    for service, (beginning, prefix) in SERVICES.items():
        if incoming.path.startswith(beginning):
            return Entry.of(service, incoming.path.removeprefix(prefix), incoming)
    return None
