"""Where a request ends, however it is cut into pieces."""

import pytest

from app.http_framing import MAX_BODY_BYTES, MAX_CHUNKED_BYTES, MAX_HEAD_BYTES, Missing, until_whole

POST = b"POST /stats HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

WHOLE = {
    "without a body": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "without fields": b"GET / HTTP/1.0\r\n\r\n",
    "after an empty line": b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "with a length": POST + b"content-LENGTH:  5 \r\n\r\nhello",
    "with an empty body": POST + b"Content-Length: 0\r\n\r\n",
    "with a body that looks like an end": POST + b"Content-Length: 9\r\n\r\n0\r\n\r\n\r\n\r\n",
    "in chunks": CHUNKED + b"5\r\nhello\r\nA;name=value\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "in no chunk": CHUNKED + b"0\r\n\r\n",
    "with trailers": CHUNKED + b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n",
}

# What is the parser's to refuse, each up to the byte that shows it.
BEYOND_US = {
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a length that is no number": POST + b"Content-Length: +5\r\n\r\n",
    "an endless length": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a length on the next line": POST + b"Content-Length:\r\n 5\r\n\r\n",
    "too long a body": POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
    "another coding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "another expectation": POST + b"Content-Length: 5\r\nExpect: more\r\n\r\n",
    "a bare line feed": b"POST /stats HTTP/1.1\n",
    "no line": b"\r\n\r\n",
    "a chunk without size": CHUNKED + b"\r\n",
    "a negative chunk": CHUNKED + b"-1\r\n",
    "a bare line feed after a chunk's size": CHUNKED + b"5\n",
    "a chunk that goes on": CHUNKED + b"1\r\nxxx\r\n",
    "a bare line feed in the trailers": CHUNKED + b"0\r\nA: b\n",
}


def missing_of(data: bytes) -> Missing | None:
    return next(until_whole(bytearray(data)), None)


def missing_by_byte(data: bytes) -> list[Missing | None]:
    """What is missing at first and after each byte, as long as anything is."""
    came = bytearray()
    progress = until_whole(came)
    found = [next(progress, None)]
    for byte in data:
        came.append(byte)
        found.append(next(progress, None))
    return found


class TestUntilWhole:
    @pytest.mark.parametrize("request_", [*WHOLE.values(), *BEYOND_US.values()], ids=[*WHOLE, *BEYOND_US])
    def test_it_ends_with_the_last_byte_when_they_drip(self, request_: bytes) -> None:
        found = missing_by_byte(request_)

        assert None not in found[:-1]
        assert found[-1] is None

    @pytest.mark.parametrize("request_", [*WHOLE.values(), *BEYOND_US.values()], ids=[*WHOLE, *BEYOND_US])
    def test_it_ends_at_once_when_all_is_there_with_the_next_request(self, request_: bytes) -> None:
        assert missing_of(request_) is None
        assert missing_of(request_ + b"GET / HT") is None

    def test_it_says_which_part_is_missing(self) -> None:
        request = WHOLE["with a length"]
        head_bytes = len(request) - len(b"hello")

        assert missing_by_byte(request) == [*[Missing.HEAD] * head_bytes, *[Missing.BODY] * 5, None]

    def test_it_says_once_that_the_client_waits_to_continue(self) -> None:
        head = POST + b"Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n"

        assert missing_by_byte(head + b"hello")[len(head) :] == [Missing.EXPECTED_BODY, *[Missing.BODY] * 4, None]
        assert missing_of(head + b"h") is Missing.BODY
        assert missing_of(head.replace(b"/1.1", b"/1.0")) is Missing.BODY

    def test_it_waits_for_no_more_than_is_read(self) -> None:
        """Fails when what waits in memory has no bound."""
        endless_head = b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_HEAD_BYTES
        endless_chunk = CHUNKED + b"FFFFFFFFFFFFFFF\r\n"
        endless_size = CHUNKED + b"1;" + b"a" * 8190
        small_chunks = CHUNKED + b"1\r\nx\r\n" * (MAX_CHUNKED_BYTES // 6 + 1)
        endless_trailers = CHUNKED + b"0\r\nA: " + b"a" * MAX_CHUNKED_BYTES

        assert missing_of(endless_chunk) is Missing.BODY
        for data in (
            endless_head,
            endless_chunk + bytes(MAX_CHUNKED_BYTES),
            endless_size,
            small_chunks,
            endless_trailers,
        ):
            assert missing_of(data) is None
