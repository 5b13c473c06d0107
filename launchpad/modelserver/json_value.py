"""JSON as RapidJSON reads and prints it: TensorFlow Serving's error texts quote values and parse positions."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from operator import eq
from typing import Any

import rapidjson

from .status import ServingError, invalid_argument

Json = Any
"""None, bool, int, float, str, list, or dict with the members in order; of equal keys the first counts."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARSE_ERROR = re.compile(r"Parse error at offset (\d+): (.*)", re.DOTALL)


class _Decoder(rapidjson.Decoder):  # type: ignore[misc]
    def start_object(self) -> list[tuple[str, Json]]:
        return []

    def end_object(self, members: list[tuple[str, Json]]) -> dict[str, Json]:
        unique: dict[str, Json] = {}
        for key, value in members:
            unique.setdefault(key, value)
        return unique


_decoder = _Decoder(number_mode=rapidjson.NM_NATIVE | rapidjson.NM_NAN)


def parse_object(body: bytes) -> dict[str, Json]:
    """Parse a document that must be an object; NaN and the infinities are numbers.

    Raises INVALID_ARGUMENT with RapidJSON's text and offset.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        document = _decoder(body.removeprefix(_BYTE_ORDER_MARK))
    except UnicodeDecodeError as error:
        raise _parse_error("Invalid encoding in string.", error.start) from None
    except RecursionError:
        raise too_deep() from None
    except rapidjson.JSONDecodeError as error:
        match = _PARSE_ERROR.match(str(error))
        assert match is not None
        raise _parse_error(match[2], int(match[1])) from None
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    return document


def too_deep() -> ServingError:
    """The error for a document nested more deeply than can be handled; the original's stack overflows."""
    return invalid_argument("JSON Parse error: The document is nested too deeply")


def _parse_error(text: str, offset: int) -> ServingError:
    return invalid_argument(f"JSON Parse error: {text} at offset: {offset}")


def format_error(value: Json, complaint: str) -> ServingError:
    """INVALID_ARGUMENT that quotes the value complained about."""
    return invalid_argument(f"JSON Value: {quote(value)} {complaint}")


def type_name(value: Json) -> str:
    """RapidJSON's name of the value's type."""
    match value:
        case None:
            return "Null"
        case bool():
            return str(value)
        case dict():
            return "Object"
        case list():
            return "Array"
        case str():
            return "String"
        case _:
            return "Number"


def quote(value: Json) -> str:
    """The value as TensorFlow Serving quotes it in an error: objects over lines, lists on one line."""
    if isinstance(value, float):
        if abs(value) <= _FLOAT_MAX:
            return decimals(array("f", [value]), single=True)[0]
        return decimals([value], single=False)[0]
    out: list[str] = []
    with suppress(_Unprintable):
        _print(value, 0, out)
    return "".join(out)


class _Unprintable(Exception):
    """RapidJSON stops printing where it meets a number that JSON does not know."""


def _print(value: Json, level: int, out: list[str]) -> None:
    if isinstance(value, dict):
        out.append("{")
        for index, (key, member) in enumerate(value.items()):
            out.append(("," if index else "") + "\n" + "    " * (level + 1) + f"{text(key)}: ")
            _print(member, level + 1, out)
        out.append("\n" + "    " * level + "}" if value else "}")
    elif isinstance(value, list):
        out.append("[")
        for index, element in enumerate(value):
            out.append(", " if index else "")
            _print(element, level + 1, out)
        out.append("]")
    else:
        out.append(_scalar(value))


def _scalar(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return text(value)
        case float():
            if not math.isfinite(value):
                raise _Unprintable
            return _shortest(value)
        case _:
            return str(value)


def _shortest(value: float) -> str:
    """The shortest digits that read back as the value, in RapidJSON's layout."""
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0:
        return sign + "0.0"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = (len(whole) if whole != "0" else len(fraction.lstrip("0")) - len(fraction)) + int(exponent or 0)
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return f"{sign}{digits.ljust(point, '0')}.0"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1}"


_FLOAT_MAX = 3.4028234663852886e38
_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\"} | {code: f"\\u{code:04X}" for code in range(0x20)}
_ESCAPES |= {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}


def text(value: str) -> str:
    """A string as RapidJSON prints it, quotes included."""
    return f'"{value.translate(_ESCAPES)}"'


def byte_text(value: bytes) -> bytes:
    """A byte string as RapidJSON prints it: what is not UTF-8 passes through unchanged."""
    return text(value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def decimals(values: Sequence[float], *, single: bool) -> list[str]:
    """Numbers as TensorFlow Serving prints them: six digits where they read back as the same number, else all.

    `single`: whether the numbers are single precision; all digits are then 9, else 17.
    """
    count = len(values)
    if not count:
        return []
    numbers = tuple(values)
    both = (_formats("%.9g" if single else "%.17g", count) % (numbers + numbers)).split()
    short, full = both[:count], both[count:]
    back = array("f" if single else "d", map(float, short))
    exact = list(map(eq, back, numbers))
    texts = full
    if True in exact:
        texts = [brief if same else long for brief, same, long in zip(short, exact, full, strict=True)]
    if "".join(texts).count(".") == count:
        return texts
    return [_decimal(text) for text in texts]


@lru_cache(maxsize=64)
def _formats(full: str, count: int) -> str:
    """The format of `count` numbers, first in short and then in full."""
    return " ".join(["%.6g"] * count + [full] * count)


def _decimal(digits: str) -> str:
    """A formatted number, marked as a decimal number in the way of the original."""
    if "." in digits or "e" in digits:
        return digits
    return _SPECIAL.get(digits) or digits + ".0"


_SPECIAL = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
