"""What our worker uses of gunicorn's inside is as it was when it was written."""

import hashlib
import inspect
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import Unreader
from gunicorn.http.wsgi import create
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

from app.gunicorn_worker import Received

# What is overridden, what calls it, and what it calls; each with the hash of its source.
USED: dict[Any, str] = {
    ThreadWorker.accept: "f8dcead3dce5",
    ThreadWorker.on_client_socket_readable: "aead1a3ea7b7",
    ThreadWorker.enqueue_req: "c9f428953d24",
    ThreadWorker.handle: "ca85c9be3df7",
    ThreadWorker._keepalive_after: "4ebdbbc8bf5a",
    ThreadWorker.handle_request: "6d0de5b91910",
    ThreadWorker.finish_request: "616e7bb15a00",
    ThreadWorker.run: "f92c7394d857",
    ThreadWorker._cap_keepalive: "745c8ac37108",
    ThreadWorker.murder_pending: "7bf11f464542",
    ThreadWorker.wait_for_and_dispatch_events: "ea969b352482",
    Worker.handle_error: "75426448389b",
    TConn: "e3a2878ba952",
    Parser: "3a9c06e348c7",
    Unreader: "84aaa8f91fcd",
    create: "2c35d4a2dc62",
}


def digest(used: Any) -> str:
    return hashlib.sha256(inspect.getsource(used).encode()).hexdigest()[:12]


class TestGunicorn:
    @pytest.mark.parametrize("used", USED, ids=lambda used: used.__qualname__)
    def test_it_is_the_one_that_our_worker_was_written_for(self, used: Any) -> None:
        """Fails when gunicorn changes it: read what changed, look at our worker, and then write the new hash down."""
        assert digest(used) == USED[used]

    def test_it_speaks_no_http_2_unless_it_is_told_to(self) -> None:
        """Our worker makes the parser of a connection before gunicorn would look for HTTP/2."""
        assert Config().http2_cleartext == "off"
        assert not Config().is_ssl


class TestReceived:
    def test_it_gives_what_has_come_and_then_never_an_end(self) -> None:
        """An end without an error would pass off a part of a body as the whole, and its rest as the next request."""
        received = Received()
        received.data += b"hello"

        assert received.read() == b"hello"
        with pytest.raises(NoMoreData):
            received.read()
