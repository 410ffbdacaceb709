"""Where a request that is still coming ends (RFC 9112, section 6).

Only the fields that frame a request are read, and nothing is refused: what can't be framed is whole at once, so that
gunicorn's parser has it, and refuses it.
"""

import re
from collections.abc import Iterator
from enum import StrEnum

# Bodies that we read; the application refuses longer ones.
MAX_BODY_BYTES = 1024 * 1024
# With the sizes and extensions of its chunks.
MAX_CHUNKED_BYTES = 2 * MAX_BODY_BYTES
# What gunicorn reads at most: an empty line, a request line of 8,190 bytes, and 100 fields of as many.
MAX_HEAD_BYTES = 2 + 8192 + 100 * 8192 + 4
MAX_CHUNK_LINE_BYTES = 8190

_FRAMING_FIELD = re.compile(rb"\r\n(content-length|transfer-encoding|expect)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HTTP_1_0 = re.compile(rb"\A(?:\r\n)?[^\r\n]* HTTP/1\.0\r\n")
_BLANK_LINE = b"\r\n\r\n"


class Missing(StrEnum):
    """What a request waits for."""

    HEAD = "head"
    # The body, before which the client waits for `100 Continue`.
    EXPECTED_BODY = "expected_body"
    BODY = "body"


def until_whole(data: bytearray) -> Iterator[Missing]:
    """Yield what is missing of the request at the start of `data`, until nothing is; it goes on when more was added.

    It ends as well where the request can't be framed or is longer than we read.
    """
    yield from _until_blank_line(data, start=0, limit=MAX_HEAD_BYTES, missing=Missing.HEAD)
    head_bytes = data.find(_BLANK_LINE) + len(_BLANK_LINE)
    if head_bytes < len(_BLANK_LINE):
        return
    found = _FRAMING_FIELD.findall(data, 0, head_bytes)
    fields = {name.lower(): value.strip().lower() for name, value in found}
    length = fields.get(b"content-length", b"0")
    is_chunked = b"transfer-encoding" in fields
    if len(fields) < len(found) or _is_beyond_us(fields) or (is_chunked and b"content-length" in fields):
        return
    # RFC 9110, section 10.1.1: HTTP/1.0 knows no expectation; nobody waits who has no body, or has sent some of it.
    is_body_missing = (is_chunked or int(length) > 0) and len(data) == head_bytes
    if b"expect" in fields and is_body_missing and not _HTTP_1_0.search(data, 0, head_bytes):
        yield Missing.EXPECTED_BODY
    if is_chunked:
        yield from _until_last_chunk(data, head_bytes)
    while len(data) < head_bytes + int(length):
        yield Missing.BODY


def _is_beyond_us(fields: dict[bytes, bytes]) -> bool:
    length = fields.get(b"content-length", b"0")
    return (
        not _LENGTH.fullmatch(length)
        or int(length) > MAX_BODY_BYTES
        or fields.get(b"transfer-encoding", b"chunked") != b"chunked"
        or fields.get(b"expect", b"100-continue") != b"100-continue"
    )


def _until_blank_line(data: bytearray, *, start: int, limit: int, missing: Missing) -> Iterator[Missing]:
    """Yield until lines end; each byte is looked at once, however slowly they come."""
    searched = start
    while data.find(_BLANK_LINE, max(start, searched - 3)) < 0:
        if _BARE_LF.search(data, searched) or len(data) > limit:
            return
        searched = len(data)
        yield missing


def _until_last_chunk(data: bytearray, at: int) -> Iterator[Missing]:
    """Yield until the last chunk and the trailers after it have come (RFC 9112, section 7.1)."""
    limit = at + MAX_CHUNKED_BYTES
    while len(data) <= limit:
        if line := _CHUNK_LINE.match(data, at):
            if not (size := int(line[1], 16)):
                yield from _until_blank_line(data, start=line.end() - 2, limit=limit, missing=Missing.BODY)
                return
            at = line.end() + size + 2
        elif data.find(b"\n", at) >= 0 or len(data) - at > MAX_CHUNK_LINE_BYTES:
            return
        else:
            yield Missing.BODY
        while len(data) < at and len(data) <= limit:
            yield Missing.BODY
