"""A client's connection below HTTP, for the faults that no well-behaved server has."""

import select
import socket
import struct

from werkzeug.wrappers import Response

ENVIRON_KEY = "sandbox.connection"


class Epoch:
    """The time from one reset to the next; whoever waits in it stops waiting when it ends."""

    def __init__(self) -> None:
        self._ended, self._end = socket.socketpair()

    def end(self) -> None:
        self._end.close()

    def wait(self, seconds: float, connection: socket.socket | None = None) -> bool:
        """Wait, at most until the client of `connection` goes away or the epoch ends.

        :return: whether all of the time passed
        """
        poll = select.poll()
        for watched in (self._ended, connection):
            if watched is not None:
                poll.register(watched, select.POLLIN | select.POLLHUP)
        return not poll.poll(seconds * 1000)


def raw_answer(response: Response) -> tuple[bytes, bytes]:
    """The head and the body of a response, as they go over the wire."""
    body = response.get_data()
    headers = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    return f"HTTP/1.1 {response.status}\r\n{headers}Connection: close\r\n\r\n".encode("latin-1"), body


def drip(connection: socket.socket, data: bytes, *, pause_seconds: float, epoch: Epoch) -> None:
    """Send the data byte by byte, for as long as the client stays."""
    for position in range(len(data)):
        connection.sendall(data[position : position + 1])
        if not epoch.wait(pause_seconds, connection):
            return


def reset(connection: socket.socket) -> None:
    """Close with RST: without lingering, and past the references that the server's files hold."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())
