"""HTTP as bytes on a connection, for what no client library sends."""

import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from tests.web import API_KEY, WebProcess


@dataclass(frozen=True)
class RawAnswer:
    """An answer, and the bytes of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@contextmanager
def connected(web: WebProcess, sent: bytes = b"", *, room: int | None = None) -> Iterator[socket.socket]:
    """A connection on which this was sent, whose client has room for so many bytes of an answer."""
    host, _, port = web.url.removeprefix("http://").rpartition(":")
    with socket.socket() as connection:
        connection.settimeout(20)
        if room is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.connect((host, int(port)))
        connection.sendall(sent)
        yield connection


def read_answer(connection: socket.socket) -> RawAnswer:
    """The next answer; it reads ahead, so that it is the last one that is read of pipelined ones."""
    with closing(http.client.HTTPResponse(connection)) as answer:
        answer.begin()
        return RawAnswer(answer.status, answer.headers, answer.read())


def ask(web: WebProcess, sent: bytes, *, end: bool = False) -> RawAnswer:
    """Send bytes, and perhaps that there are no more, and read one answer."""
    with connected(web, sent) as connection:
        if end:
            connection.shutdown(socket.SHUT_WR)
        return read_answer(connection)


def head(path: str, *fields: str, method: str = "POST") -> bytes:
    """The head of a request of a caller of ours."""
    lines = (f"{method} {path} HTTP/1.1", "Host: x", f"X-API-Key: {API_KEY}", *fields)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def with_length(path: str, body: bytes, *fields: str) -> bytes:
    """A request whose body has its length told."""
    return head(path, "Content-Type: application/json", f"Content-Length: {len(body)}", *fields) + body


def in_chunks(path: str, *chunks: bytes) -> bytes:
    """A request whose body comes in these chunks."""
    begun = head(path, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return begun + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
