"""Event files of TensorBoard, encoded here: the few kinds of records that a run needs.

The library for this would load torch, 200 MiB, into a process that only watches; would swallow a
full disk in its thread; and names files by the second, so that of two that begin within one the
first is lost.

A file is a row of records: length, checksum of the length, an `Event`, checksum of the event. An
event is a protocol buffer (tensorflow/core/util/event.proto and summary.proto); the numbers below
are those of its fields.
"""

import struct
from collections.abc import Mapping

_POLYNOMIAL = 0x82F63B78
"""Of CRC-32C, reversed."""
DT_STRING = 7
START = 1


def record(event: bytes) -> bytes:
    """An event as it stands in a file."""
    size = struct.pack("<Q", len(event))
    return size + _masked(crc32c(size)) + event + _masked(crc32c(event))


def version(unix_time: float) -> bytes:
    """The first event of a file."""
    return _time(unix_time, 0) + _part(3, b"brain.Event:2")


def start(unix_time: float, step: int) -> bytes:
    """Tells TensorBoard to forget `step` and later ones of the files before this one."""
    return _time(unix_time, step) + _part(7, _whole(1, START))


def scalars(unix_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """One step of some series."""
    parts = [_part(1, name.encode()) + _single(2, value) for name, value in values.items()]
    return _time(unix_time, step) + _part(5, b"".join(_part(1, part) for part in parts))


def text(unix_time: float, name: str, markdown: str) -> bytes:
    """What the page `Text` shows."""
    plugin = _part(1, _part(1, b"text"))
    tensor = _whole(1, DT_STRING) + _part(2, _part(2, _whole(1, 1))) + _part(8, markdown.encode())
    value = _part(1, f"{name}/text_summary".encode()) + _part(8, tensor) + _part(9, plugin)
    return _time(unix_time, 0) + _part(5, _part(1, value))


def crc32c(data: bytes) -> int:
    """The checksum of Castagnoli."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _table()


def _masked(crc: int) -> bytes:
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _time(unix_time: float, step: int) -> bytes:
    return _key(1, 1) + struct.pack("<d", unix_time) + (_whole(2, step) if step else b"")


def _whole(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _part(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


def _single(number: int, value: float) -> bytes:
    """As 32 bits; what is too large for them is infinite."""
    try:
        return _key(number, 5) + struct.pack("<f", value)
    except OverflowError:
        return _key(number, 5) + struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; whole numbers from 0."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
