"""TFRecord files, as TensorFlow reads and writes them: a record is its length, that one's checksum, data, its checksum.

The format is that of `tensorflow/core/lib/io/record_writer.h`; checksums are masked CRC-32C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


class Corrupted(ValueError):
    """A file that is cut off, or whose checksums do not match: what is wrong, and at which byte."""


def read(file: BinaryIO) -> Iterator[bytes]:
    """Yield the records of a file. Raises Corrupted."""
    offset = 0
    while header := file.read(_LENGTH.size):
        if len(header) < _LENGTH.size:
            raise Corrupted(f"truncated record at {offset}")
        length, checksum = _LENGTH.unpack(header)
        if _masked_crc(header[:8]) != checksum:
            raise Corrupted(f"corrupted record at {offset}")
        data, trailer = file.read(length), file.read(_CHECKSUM.size)
        if len(trailer) < _CHECKSUM.size:
            raise Corrupted(f"truncated record at {offset}")
        if (_masked_crc(data),) != _CHECKSUM.unpack(trailer):
            raise Corrupted(f"corrupted record at {offset}")
        yield data
        offset += _LENGTH.size + length + _CHECKSUM.size


def framed(record: bytes) -> bytes:
    """Return a record as it stands in a file."""
    length = struct.pack("<Q", len(record))
    return length + _CHECKSUM.pack(_masked_crc(length)) + record + _CHECKSUM.pack(_masked_crc(record))


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
