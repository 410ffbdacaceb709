"""The sandbox's HTTP server: keep-alive, a thread for each connection, and the connection itself for the faults."""

import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from app.sandbox import connection, create_sandbox
from app.sandbox.settings import SandboxSettings
from app.sandbox.storage import Storage, UnreadableStateError
from app.sandbox.world import EXTENSION, World
from app.services.stopping import Stop

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

MAX_BODY_BYTES = 16 * 1024 * 1024


class SandboxServer(ThreadingHTTPServer):
    """Listens, and gives each connection to a handler in a daemon thread, which ends with the process."""

    request_queue_size = 512

    def __init__(self, address: tuple[str, int], app: "WSGIApplication") -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        self.app = app

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, or are sent away by a fault, are no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Speaks WSGI to the application, one request of the connection after the other."""

    server: SandboxServer
    protocol_version = "HTTP/1.1"
    # Head and body leave in one segment, at once: otherwise Nagle's algorithm costs 40 ms an answer.
    disable_nagle_algorithm = True
    wbufsize = -1

    def respond(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self.send_error(411 if "Transfer-Encoding" in self.headers else 413)
            return
        environ = self._environ(self.rfile.read(int(length)))
        for data in self.server.app(environ, self._start):
            self.wfile.write(data)
        self.wfile.flush()

    def __getattr__(self, name: str) -> Any:
        """Handle every method alike; the application knows which it takes."""
        if name.startswith("do_"):
            return self.respond
        raise AttributeError(name)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        code, _, reason = status.partition(" ")
        self.send_response_only(int(code), reason)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        return self.wfile.write

    def _environ(self, body: bytes) -> "WSGIEnvironment":
        target = urlsplit(self.path)
        host, port = self.server.server_address[:2]
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(target.path, "latin-1"),
            "QUERY_STRING": target.query,
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            connection.ENVIRON_KEY: self.connection,
        }
        for name, value in self.headers.items():
            environ.setdefault(f"HTTP_{name.upper().replace('-', '_')}", value)
        return environ

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the ledger has it all."""


def serve(settings: SandboxSettings) -> None:
    """Serve the sandbox until SIGTERM or SIGINT.

    :raises SystemExit: when the port is taken or the state can't be read; its message is one sentence
    """
    app = create_sandbox(settings)
    world: World = app.extensions[EXTENSION]
    storage = Storage(world, settings.data_file)
    try:
        storage.load()
        server = SandboxServer((settings.host, settings.port), app)
    except UnreadableStateError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        raise SystemExit(
            f"The sandbox can't listen on {address} ({error.strerror}); choose another port with SANDBOX_PORT."
        ) from error
    world.outbox.start()
    storage.start()
    stop = _stop_on_signals()
    threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
    print(f"sandbox listening on {server.url}", flush=True)
    # The system may give a signal to any thread, and its handler runs here, when this one runs the next time.
    while not stop.is_set:
        stop.wait(1.0)
    storage.save()


def _stop_on_signals() -> Stop:
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def main() -> None:
    try:
        settings = SandboxSettings.from_environment()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    serve(settings)


if __name__ == "__main__":
    main()
