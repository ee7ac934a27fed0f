"""Messages of `application/vnd.amazon.eventstream`, the form in which AWS streams an answer.

A message is its length and that of its headers, the CRC-32 of those eight bytes, the headers, the payload, and the
CRC-32 of all before it; numbers are big-endian (*Amazon Transcribe developer guide*, "Event stream encoding").
"""

import json
from binascii import crc32
from collections.abc import Mapping
from struct import pack
from typing import Any

CONTENT_TYPE = "application/vnd.amazon.eventstream"

_STRING = 7


def message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message; headers are strings."""
    head = b"".join(
        pack("!B", len(name)) + name.encode() + pack("!BH", _STRING, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = pack("!II", 16 + len(head) + len(payload), len(head))
    body = prelude + pack("!I", crc32(prelude)) + head + payload
    return body + pack("!I", crc32(body))


def event(name: str, content: Mapping[str, Any]) -> bytes:
    """An event of a stream, such as `contentBlockDelta`, with its content."""
    headers = {":message-type": "event", ":event-type": name, ":content-type": "application/json"}
    return message(headers, json.dumps(content).encode())


def exception(name: str, text: str) -> bytes:
    """An error that ends a stream, such as `throttlingException`."""
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return message(headers, json.dumps({"message": text}).encode())
