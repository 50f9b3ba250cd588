"""Bytes of a request to a typed body, as leniently as clients need and no more.

A byte order mark is skipped, a lone surrogate escape becomes U+FFFD, unknown fields are ignored
but on our own routes, null is the same as a missing field, of two equal keys the last one counts. What is refused says
where: malformed JSON is 400, a field of the wrong kind 422.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec

from pertinent.errors import shorten
from pertinent.serving.messages import WireError

Body = TypeVar("Body", bound=msgspec.Struct)
# A document as it may come: a text, an object with texts in it, or nothing.
Document = str | dict[str, Any] | None

# Where msgspec says that it was: names of our fields and indices, nothing that a stranger wrote.
_PLACE = re.compile(r" - at `(\$[\w.\[\]]*)`$")
_MARK = b"\xef\xbb\xbf"
# Escapes of surrogates after an even run of backslashes: a pair, or one that stands alone.
_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_KEY_BEFORE = re.compile(rb'"([^"\\]{1,100})"\s*:\s*-?$')
# What other rerank routes call fields of ours.
_ELSEWHERE = {
    "documents": "texts",
    "ids": "item_ids",
    "limit": "top",
    "passages": "texts",
    "titles": "texts",
    "top_k": "top",
    "top_n": "top",
}
_NOT_NUMBERS = (b"NaN", b"Infinity")


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def read(body: bytes, kind: type[Body]) -> tuple[Body, int]:
    """A body as ``kind``, and how many lone surrogate escapes were replaced in it.

    >>> class Cup(msgspec.Struct):
    ...     name: str | None = None
    >>> read(b'{"name": "a", "size": 3}', Cup)
    (Cup(name='a'), 0)
    >>> read(rb'{"name": "\\ud800"}', Cup) == (Cup(name="\\ufffd"), 1)
    True
    """
    body = body.removeprefix(_MARK)
    try:
        return _decode(body, kind), 0
    except WireError:
        mended, repaired = mend_surrogates(body)
        if not repaired:
            raise
        return _decode(mended, kind), repaired


def mend_surrogates(body: bytes) -> tuple[bytes, int]:
    r"""JSON with each lone surrogate escape replaced by that of U+FFFD, and their number.

    >>> mend_surrogates(rb'"\ud83d\ude00 \ud83d \\ud83d"')
    (b'"\\ud83d\\ude00 \\ufffd \\\\ud83d"', 1)
    """
    repaired = 0

    def mended(match: re.Match[bytes]) -> bytes:
        nonlocal repaired
        if match[2] is not None:
            return match[0]
        repaired += 1
        return match[1] + b"\\ufffd"

    if b"\\ud" not in body and b"\\uD" not in body:
        return body, 0
    return _SURROGATES.sub(mended, body), repaired


def _decode(body: bytes, kind: type[Body]) -> Body:
    try:
        decoded: Body = _decoder(kind).decode(body)
        return decoded
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), kind.__struct_encode_fields__) from None
    except RecursionError:
        raise WireError(
            400, "the JSON is nested too deep: documents are texts or flat objects", "malformed_json"
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(body) from None
    except msgspec.DecodeError as error:
        raise _malformed(body, str(error)) from None


def _wrong_field(message: str, fields: Sequence[str]) -> WireError:
    """A msgspec message as ours: ``Expected `str`, got `int` - at `$.query```; ``fields`` are those of the body."""
    # Names of fields are a stranger's and may hold anything, also what msgspec puts around them.
    at = _PLACE.search(message)
    problem, place = (message[: at.start()], at[1]) if at else (message, "")
    unknown = re.search(r"unknown field `(.*)`", problem, re.DOTALL)
    if unknown is not None:
        name = unknown[1][:60]
        if not place:
            return WireError(422, f"{name}: there is no such field; {_meant(name, fields)}", "invalid_field", name)
        problem = f"there is no such field as {name}"
    missing = re.search(r"missing required field `(.*)`", problem)
    if missing is not None and not place:
        return WireError(422, f"{missing[1]} is missing", "missing_field", missing[1])
    problem = problem.replace("`", "")[:200]
    field = place.removeprefix("$").removeprefix(".").replace("[...]", "")
    if not field:
        return WireError(400, f"the body is not a JSON object: {problem[0].lower()}{problem[1:]}", "malformed_json")
    problem = problem[0].lower() + problem[1:]
    return WireError(422, f"{field}: {problem}", "invalid_field", re.split(r"[.\[]", field)[0])


def _meant(name: str, fields: Sequence[str]) -> str:
    """What to write in the place of an unknown field.

    >>> _meant("documents", ["query", "texts"])
    'did you mean texts?'
    >>> _meant("cup", ["query", "texts"])
    'allowed: query, texts'
    """
    other = _ELSEWHERE.get(name)
    near = [other] if other in fields else get_close_matches(name, fields, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(fields)}"


def _not_utf8(body: bytes) -> WireError:
    place = "a byte"
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
    return WireError(400, f"the body is not UTF-8 at {place}: send UTF-8", "malformed_json")


def _malformed(body: bytes, message: str) -> WireError:
    place = re.search(r"\(byte (\d+)\)", message)
    if place is not None:
        at = int(place[1])
        name = next((n.decode() for n in _NOT_NUMBERS if body.startswith(n, at)), None)
        if name is not None:
            key = _KEY_BEFORE.search(body, max(0, at - 200), at)
            field = key[1].decode() if key else None
            spot = field or f"byte {at}"
            return WireError(422, f"{spot}: {name} is not a number in JSON: give a finite one", "invalid_field", field)
    if not body.strip():
        return WireError(400, "the body is empty: send a JSON object", "malformed_json")
    return WireError(400, f"the body is not JSON: {message.removeprefix('JSON is malformed: ')}", "malformed_json")


def required(value: Any, field: str, what: str) -> Any:
    """A value that must be there, or a 422 that names the field.

    >>> required("cup", "query", "a text")
    'cup'
    """
    if value is None:
        raise WireError(422, f"{field} is missing: give {what}", "missing_field", field)
    return value


def whole(value: int | float | None, field: str, least: int) -> int | None:
    """A count that may be written ``2.0``; None where it is absent.

    >>> whole(2.0, "top_n", least=1), whole(None, "top_n", least=1)
    (2, None)
    """
    if value is None:
        return None
    if value != int(value) or value < least:
        raise WireError(
            422, f"{field} is {shorten(value)}: give a whole number, {least} or more", "invalid_field", field
        )
    return int(value)


def one_text(value: str | dict[str, Any] | None, field: str) -> str:
    """A query: a text, or an object that has one under ``text``."""
    value = required(value, field, "a text")
    if isinstance(value, str):
        return value
    text = value.get("text")
    if not isinstance(text, str):
        raise WireError(422, f"{field} is an object without a text: give a text", "invalid_field", field)
    return text


def texts(values: Sequence[Document] | None, field: str, fields: Sequence[str] | None = None) -> list[str]:
    """The texts of documents; ``fields`` are those to read of an object, in order, instead of ``text``.

    A null document is an empty text. No documents at all are a 400.

    >>> texts(["Mug", {"text": "Pan"}, None], "documents")
    ['Mug', 'Pan', '']
    >>> texts([{"title": "Pan", "brand": "Ode", "price": 9}], "documents", ["brand", "title", "price"])
    ['Ode Pan 9']
    """
    values = required(values, field, "a list of texts")
    if not values:
        raise WireError(400, f"{field} is an empty list: give at least one text", "empty_documents", field)
    return [
        value if isinstance(value, str) else _object_text(value, f"{field}[{row}]", fields)
        for row, value in enumerate(values)
    ]


def blank_rows(values: Sequence[str]) -> list[int]:
    """Rows of the texts that have nothing to read.

    >>> blank_rows(["Mug", " ", ""])
    [1, 2]
    """
    return [row for row, value in enumerate(values) if not value or value.isspace()]


def _object_text(value: dict[str, Any] | None, place: str, fields: Sequence[str] | None) -> str:
    if value is None:
        return ""
    field = re.split(r"[.\[]", place)[0]
    if fields:
        named = [(name, value[name]) for name in fields if value.get(name) is not None]
        return " ".join(_plain(text, f"{place}.{name}", field, str, int, float) for name, text in named)
    if "text" not in value:
        raise WireError(422, f"{place} has no text: give a text, or an object with 'text'", "invalid_field", field)
    text = value["text"]
    return "" if text is None else _plain(text, f"{place}.text", field, str)


def _plain(value: Any, place: str, field: str, *kinds: type) -> str:
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise WireError(422, f"{place} is {shorten(value)}: give a text", "invalid_field", field)
    return str(value)
