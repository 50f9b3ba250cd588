"""One record of a foreign log as flat rows, one for each item that it names.

Pure functions on plain dictionaries, so that JSON lines and nested Parquet are read by the same code.
Layouts: UBI 1.3 and the OpenSearch plug-in's own index, the Google Analytics 4 export to BigQuery,
Segment's e-commerce events (v2), Snowplow's e-commerce actions.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pertinent.data.tables import plain
from pertinent.errors import DataError
from pertinent.mining.schema import CLICK, LEVEL_NUMBERS, MICROSECONDS, VIEW

# Positions are below this, in any log.
POSITIONS = 2**31
NEGATIVE = -1  # taken back: removed from the cart, refunded
SEARCH = -2  # a search, and no item
UNITS = MappingProxyType({"seconds": MICROSECONDS, "milliseconds": 1000, "microseconds": 1})
# Export tables of Google Analytics cut the list of items of an event here.
GA4_ITEMS = 200
_EPOCH = dt.datetime(1970, 1, 1)

Meanings = Mapping[str, str]

# Words for what happened, after `word`; also what `levels` of the settings adds to or changes.
UBI_ACTIONS: Meanings = MappingProxyType(
    {
        **dict.fromkeys(("impression", "impressions", "shown", "product_impression"), "view"),
        **dict.fromkeys(("click", "item_click", "product_click", "select", "view", "watch", "detail"), "click"),
        **dict.fromkeys(("add_to_cart", "addtocart", "cart"), "cart"),
        **dict.fromkeys(("contact", "contact_supplier", "inquiry", "enquiry", "request_quote", "chat"), "contact"),
        **dict.fromkeys(("checkout", "begin_checkout", "order"), "order"),
        **dict.fromkeys(("purchase", "buy", "pay", "payment"), "pay"),
        **dict.fromkeys(("remove_from_cart", "remove", "refund", "return", "cancel"), "negative"),
        **dict.fromkeys(("query", "search", "on_search"), "search"),
    }
)
GA4_EVENTS: Meanings = MappingProxyType(
    {
        "view_search_results": "search",
        "view_item_list": "view",
        "select_item": "click",
        "view_item": "click",
        "add_to_cart": "cart",
        "generate_lead": "contact",
        "begin_checkout": "order",
        "purchase": "pay",
        "remove_from_cart": "negative",
        "refund": "negative",
    }
)
SEGMENT_EVENTS: Meanings = MappingProxyType(
    {
        "products_searched": "search",
        "product_list_viewed": "view",
        "product_list_filtered": "view",
        "product_clicked": "click",
        "product_viewed": "click",
        "product_added": "cart",
        "checkout_started": "order",
        "order_completed": "pay",
        "product_removed": "negative",
        "order_refunded": "negative",
        "order_cancelled": "negative",
    }
)
SNOWPLOW_TYPES: Meanings = MappingProxyType(
    {
        "list_view": "view",
        "list_click": "click",
        "product_view": "click",
        "add_to_cart": "cart",
        "checkout_step": "order",
        "transaction": "pay",
        "remove_from_cart": "negative",
        "refund": "negative",
    }
)
_LIST_EVENTS = frozenset(
    ("view_item_list", "select_item", "product_list_viewed", "product_list_filtered", "product_clicked")
) | {"list_view", "list_click"}
# Levels at which a position that Segment or Snowplow gives is one in a list of products.
_PLACED = frozenset((VIEW, CLICK))


@dataclass(frozen=True, slots=True)
class Flat:
    """One item in one event; None where the source says nothing."""

    level: int  # a place in LEVELS, NEGATIVE or SEARCH
    time: int = 0
    search_id: str | None = None
    session_id: str | None = None
    device: str | None = None
    account: str | None = None
    query: str | None = None
    item_id: str | None = None
    ordinal: int | None = None  # the position as the source gives it, from 0 or from 1
    place: int | None = None  # the place in the event's own list, from 0
    application: str = ""
    list_id: str | None = None
    listed: bool = False  # the event is about a list: shown in it, or clicked in it
    hit: bool = False  # from the list of ids that the engine returned
    internal: bool = False  # such an id, and nothing says which field it is from
    event_id: str | None = None
    agent: str | None = None


@dataclass(slots=True)
class Reading:
    """How records are read, and what was met: ``notes`` counts it."""

    meanings: Meanings
    zone: dt.tzinfo | None
    unit: str
    parameters: tuple[str, ...] = ()
    item_field: str | None = None
    pattern: re.Pattern[str] | None = None
    notes: Counter[str] = field(default_factory=Counter)

    def level(self, action: str) -> int | None:
        """A place in LEVELS, NEGATIVE or SEARCH; None (counted) for an action that says nothing here."""
        meaning = self.meanings.get(word(action), "other")
        if meaning in ("other", "ignore"):
            self.notes[f"{meaning}_actions"] += 1
            return None
        return {"negative": NEGATIVE, "search": SEARCH}.get(meaning, LEVEL_NUMBERS.get(meaning, SEARCH))

    def micros(self, value: object, name: str = "timestamp") -> int:
        """`micros` with these settings; 0 (counted) where there is no value."""
        if value is None or value == "":
            self.notes["rows_without_time"] += 1
            return 0
        return micros(value, self.zone, self.unit, name)


def word(text: object) -> str:
    """An action's name in one form.

    >>> word("Product List Viewed"), word("add-to-cart")
    ('product_list_viewed', 'add_to_cart')
    """
    return plain(text).lower().replace(" ", "_").replace("-", "_")


def micros(value: object, zone: dt.tzinfo | None, unit: str, name: str = "time") -> int:
    """Microseconds since 1970 in UTC of a time as logs write it: text, number or datetime.

    Text and datetimes without a zone are in ``zone``; without that, DataError asks for one.
    Numbers, also in text, count ``unit`` since 1970.

    >>> micros("2026-11-02T10:15:30.120Z", None, "seconds"), micros("1793614530.5", None, "seconds")
    (1793614530120000, 1793614530500000)
    >>> micros("2026-11-02 10:15:30", dt.timezone(dt.timedelta(hours=1)), "seconds")
    1793610930000000
    """
    if isinstance(value, bool):
        raise DataError("is not a time", column=name, value=value)
    if isinstance(value, int):
        return _scaled(value, unit, name)
    if isinstance(value, float):
        return _scaled(value, unit, name)
    moment = value
    if not isinstance(moment, dt.datetime):
        text = plain(value)
        if text.lstrip("-").isdecimal():
            return _scaled(int(text) if len(text) < 30 else float(text), unit, name)
        moment = _parsed(text, unit, name)
        if isinstance(moment, int):
            return moment
    if moment.tzinfo is None:
        if zone is None:
            raise DataError(
                "has no time zone",
                column=name,
                value=plain(value),
                fix="name the zone that the log is written in, such as --set log.time_zone=Europe/Berlin",
            )
        moment = moment.replace(tzinfo=zone)
    offset = moment.utcoffset() or dt.timedelta()
    return (moment.replace(tzinfo=None) - _EPOCH - offset) // dt.timedelta(microseconds=1)


def _parsed(text: str, unit: str, name: str) -> dt.datetime | int:
    if text.endswith(" UTC"):  # as BigQuery writes it
        text = text.removesuffix(" UTC") + "+00:00"
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return _scaled(float(text), unit, name)
    except ValueError:
        fix = (
            "write it as 2026-11-02T10:15:30Z, or as a number since 1970 (in seconds with --set log.time_unit=seconds)"
        )
        raise DataError("is not a time", column=name, value=text, fix=fix) from None


def _scaled(value: float, unit: str, name: str) -> int:
    if not abs(value) * UNITS[unit] < 2**62:  # also NaN
        raise DataError(
            f"is not a time in {unit}",
            column=name,
            value=value,
            fix="name the unit, such as --set log.time_unit=milliseconds",
        )
    return round(value * UNITS[unit])


def whole(value: object) -> int | None:
    """A whole number from a number or a text, or None where it is none.

    >>> whole("2"), whole(2.0), whole("first"), whole(True)
    (2, 2, None, None)
    """
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value) if not isinstance(value, int) else value  # type: ignore[arg-type]
        return int(number) if number == int(number) and abs(number) < POSITIONS else None
    except (TypeError, ValueError, OverflowError):
        return None


def url_term(url: object, parameters: tuple[str, ...]) -> str | None:
    """The search term in the address of a page, from the first parameter that it has.

    >>> url_term("https://shop.example/s?lang=en&q=trail+sh%C3%B6e#top", ("query", "q"))
    'trail shöe'
    """
    if not isinstance(url, str) or "?" not in url:
        return None
    try:
        found = parse_qs(urlsplit(url).query)
    except ValueError:
        return None
    return next((text for name in parameters for text in found.get(name, []) if text.strip()), None)


def ubi_query(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The rows of a UBI query record: the search, and one view for each id that the engine returned."""
    search = _ubi_flat(SEARCH, record, reading)
    if search.search_id is None:
        reading.notes["queries_without_id"] += 1
    yield search
    hits = record.get("query_response_hit_ids")
    if hits is None:
        hits = record.get("query_response_objects_ids")
        reading.notes["old_name_of_hit_ids"] += hits is not None
    ids = list_of(hits, "query_response_hit_ids")
    internal = text_of(record.get("object_id_field")) is None
    seen = set[str]()
    for place, value in enumerate(ids):
        item_id = text_of(value)
        if item_id is None or item_id in seen:
            reading.notes["hits_repeated_or_empty"] += 1
            continue
        seen.add(item_id)
        yield replace(search, level=VIEW, item_id=item_id, place=place, listed=True, hit=True, internal=internal)


def ubi_event(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The row of a UBI event record, nothing for an action that is not about an item or a search."""
    level = reading.level(record.get("action_name") or "")
    if level is None:
        return
    attributes = object_of(record.get("event_attributes"), "event_attributes")
    thing = object_of(attributes.get("object"), "event_attributes.object")
    flat = replace(
        _ubi_flat(level, record, reading),
        item_id=text_of(thing.get("object_id")),
        ordinal=_ubi_ordinal(attributes.get("position"), reading),
        listed=level == VIEW,
    )
    if level == SEARCH:
        flat = replace(flat, item_id=None)
    elif flat.item_id is None:
        reading.notes["events_without_item"] += 1
        return
    elif flat.search_id is None:
        reading.notes["events_without_query_id"] += 1
    yield flat


def _ubi_flat(level: int, record: Mapping[str, Any], reading: Reading) -> Flat:
    """What queries and events of UBI name alike."""
    return Flat(
        level,
        time=reading.micros(record.get("timestamp")),
        search_id=text_of(record.get("query_id")),
        session_id=text_of(record.get("session_id")),
        device=text_of(record.get("client_id")),
        account=text_of(record.get("user_id")),
        query=text_of(record.get("user_query")),
        application=text_of(record.get("application")) or "",
        agent=text_of(record.get("user_agent")),
    )


def _ubi_ordinal(position: object, reading: Reading) -> int | None:
    if position is None:
        return None
    found = object_of(position, "event_attributes.position")
    ordinal = whole(found.get("ordinal"))
    if ordinal is None:
        places = {"x", "y", "xy"} & {name for name, value in found.items() if value is not None}
        reading.notes["positions_only_xy" if places else "positions_empty"] += 1
    return ordinal


def ubi_flat(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The row of a UBI record whose fields were flattened: user_id, search_id, query, event, item_id, position."""
    position, item_id = record.get("position"), record.get("item_id")
    nested = {"object": {"object_id": item_id}, "position": None if position is None else {"ordinal": position}}
    yield from ubi_event(
        {
            "action_name": record.get("event"),
            "query_id": record.get("search_id"),
            "user_query": record.get("query"),
            "event_attributes": nested,
            **{name: record.get(name) for name in ("timestamp", "client_id", "session_id", "user_id", "application")},
        },
        reading,
    )


def ubi(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The rows of a UBI record of any kind: event, flattened event or query."""
    if record.get("action_name") is not None:
        yield from ubi_event(record, reading)
    elif "event" in record:
        yield from ubi_flat(record, reading)
    elif "user_query" in record or "query_response_hit_ids" in record:
        yield from ubi_query(record, reading)
    else:
        there = ", ".join(list(record)[:10])
        raise DataError(f"is neither a UBI event nor a UBI query; it has {there}", fix="events have an action_name")


def ga4(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The rows of one event of the Google Analytics 4 export, one for each item."""
    name = word(record.get("event_name"))
    level = reading.level(name)
    if level is None:
        return
    params = {p.get("key"): _ga4_value(p.get("value")) for p in objects_of(record.get("event_params"), "event_params")}
    device, session = text_of(record.get("user_pseudo_id")), _set(params.get("ga_session_id"))
    stamp = record.get("event_timestamp")
    event = Flat(
        level,
        time=reading.micros(whole_text(stamp), "event_timestamp"),
        # ga_session_id is the session's start: two users can share it.
        session_id=None if session is None else f"{device or record.get('user_id')}.{session}",
        device=device,
        account=text_of(record.get("user_id")),
        query=_term(_set(params.get("search_term")), params.get("page_location"), reading),
        application=".".join(filter(None, (_set(record.get("platform")), _set(record.get("stream_id"))))),
        listed=name in _LIST_EVENTS,
    )
    items = objects_of(record.get("items"), "items")
    if len(items) >= GA4_ITEMS:
        reading.notes["lists_of_200_items"] += 1
    if level == SEARCH:
        yield event
        level = VIEW
    elif not items:
        reading.notes["events_without_item"] += 1
    # In a basket or an order the index is the place there, and on a product's page it is always the first.
    in_list = event.listed or level == VIEW
    for place, item in enumerate(items):
        item_id = _set(item.get(reading.item_field or "item_id"))
        if item_id is None:
            reading.notes["events_without_item"] += 1
            continue
        listing = _set(item.get("item_list_id")) or _set(params.get("item_list_id"))
        yield replace(
            event,
            level=level,
            item_id=item_id,
            ordinal=_ga4_ordinal(item) if in_list else None,
            place=place if level == VIEW else None,
            list_id=listing or _set(item.get("item_list_name")) or _set(params.get("item_list_name")),
            listed=event.listed or event.level == SEARCH,
        )


def _ga4_ordinal(item: Mapping[str, Any]) -> int | None:
    """The position in a list: of the export's own name, or of the name that sites send."""
    ordinal = item.get("item_list_index")
    return whole(item.get("index") if ordinal is None else ordinal)


def whole_text(value: object) -> object:
    """A whole number that JSON exports wrote as text, or the value itself.

    >>> whole_text("1793614541002000"), whole_text(5)
    (1793614541002000, 5)
    """
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _ga4_value(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    names = ("string_value", "int_value", "float_value", "double_value")
    return next((value[name] for name in names if value.get(name) is not None), None)


def _set(value: object) -> str | None:
    text = text_of(value)
    return None if text in ("(not set)", "(not provided)") else text


def _term(own: str | None, url: object, reading: Reading) -> str | None:
    if own is not None:
        return own
    found = url_term(url, reading.parameters)
    reading.notes["queries_from_addresses"] += found is not None
    return found


def segment(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The rows of one Segment call, one for each product; calls that are no track call say nothing here."""
    if record.get("type", "track") != "track":
        reading.notes["other_actions"] += 1
        return
    name = word(record.get("event"))
    level = reading.level(name)
    if level is None:
        return
    properties = object_of(record.get("properties"), "properties")
    context = object_of(record.get("context"), "context")
    page = object_of(context.get("page"), "context.page")
    stamp = next((record[n] for n in ("timestamp", "originalTimestamp", "receivedAt") if record.get(n)), None)
    session = context.get("sessionId") if context.get("sessionId") is not None else properties.get("session_id")
    event = Flat(
        level,
        time=reading.micros(stamp),
        session_id=text_of(session),
        device=text_of(_either(record, "anonymousId", "anonymous_id")),
        account=text_of(_either(record, "userId", "user_id")),
        query=_term(text_of(properties.get("query")), properties.get("url") or page.get("url"), reading),
        application=text_of(object_of(context.get("app"), "context.app").get("name")) or "",
        list_id=text_of(properties.get("list_id")),
        listed=name in _LIST_EVENTS,
        event_id=text_of(_either(record, "messageId", "message_id")),
        agent=text_of(context.get("userAgent")),
    )
    if level == SEARCH:
        yield event
        return
    products = objects_of(properties.get("products"), "properties.products")
    for place, product in enumerate(products or [properties]):
        item_id = _segment_item(product, reading)
        if item_id is not None:
            # In an order the position is the place there.
            ordinal = whole(product.get("position")) if level in _PLACED else None
            spot = place if products and level == VIEW else None
            yield replace(event, item_id=item_id, ordinal=ordinal, place=spot)


def _either(record: Mapping[str, Any], name: str, other: str) -> object:
    return record.get(name) if record.get(name) is not None else record.get(other)


def _segment_item(product: Mapping[str, Any], reading: Reading) -> str | None:
    if reading.item_field is not None:
        item_id = text_of(product.get(reading.item_field))
    else:
        item_id = text_of(product.get("product_id"))
        if item_id is None and (item_id := text_of(product.get("sku"))) is not None:
            reading.notes["items_named_by_sku"] += 1
    if item_id is None:
        reading.notes["events_without_item"] += 1
    return item_id


def snowplow(record: Mapping[str, Any], reading: Reading) -> Iterator[Flat]:
    """The rows of one Snowplow e-commerce action, one for each product entity.

    Read from enriched JSON, from warehouse columns with a version at the end of their names, and from
    the self-describing ``unstruct_event`` and ``contexts``.
    """
    action, site_search = _snowplow_event(record, "snowplow_ecommerce_action"), _snowplow_event(record, "site_search")
    kind = "site_search" if site_search else text_of((action or {}).get("type"))
    level = SEARCH if site_search else reading.level(kind or "")
    if level is None:
        return
    terms = " ".join(plain(term) for term in list_of((site_search or {}).get("terms"), "terms")) or None
    name = text_of((action or {}).get("name"))
    match = reading.pattern.search(name) if name is not None and reading.pattern is not None else None
    stamp = next(
        (record[n] for n in ("derived_tstamp", "dvce_created_tstamp", "collector_tstamp") if record.get(n)), None
    )
    event = Flat(
        level,
        time=reading.micros(stamp, "derived_tstamp"),
        session_id=text_of(record.get("domain_sessionid")),
        device=text_of(record.get("domain_userid")),
        account=text_of(record.get("user_id")),
        query=_term(terms or (match.group(1).strip() or None if match else None), record.get("page_url"), reading),
        application=text_of(record.get("app_id")) or "",
        # A list whose name holds the query is a search; any other name is another list.
        list_id=None if match else name if kind in _LIST_EVENTS else None,
        listed=kind in _LIST_EVENTS,
        event_id=text_of(record.get("event_id")),
        agent=text_of(record.get("useragent")),
    )
    if level == SEARCH:
        yield event
        return
    products = _snowplow_entities(record)
    if not products:
        reading.notes["events_without_item"] += 1
    for place, product in enumerate(products):
        item_id = text_of(product.get(reading.item_field or "id"))
        if item_id is None:
            reading.notes["events_without_item"] += 1
            continue
        spot = place if level == VIEW else None
        ordinal = whole(product.get("position")) if level in _PLACED else None
        yield replace(event, item_id=item_id, ordinal=ordinal, place=spot)


def _snowplow_event(record: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    for key, value in record.items():
        if key.startswith("unstruct_event_") and f"_{name}_" in key and value is not None:
            found = objects_of(value, key) if not isinstance(value, Mapping) else [value]
            return found[0] if found else None
    wrapped = object_of(record.get("unstruct_event"), "unstruct_event")
    inner = object_of(wrapped.get("data", wrapped), "unstruct_event.data")
    return object_of(inner.get("data"), "data") if f"/{name}/" in plain(inner.get("schema")) else None


def _snowplow_entities(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for key, value in record.items():
        # A warehouse has a column for each version of the schema, all but one of them empty.
        if key.startswith("contexts_") and "_ecommerce_product_" in key and (found := objects_of(value, key)):
            return found
    wrapped = record.get("contexts")
    entities = objects_of(wrapped.get("data") if isinstance(wrapped, Mapping) else wrapped, "contexts")
    return [object_of(e.get("data"), "data") for e in entities if "ecommerce/product/" in plain(e.get("schema"))]


def text_of(value: object) -> str | None:
    """An id or a text, None where it is empty; numbers become text, so that 12 and "12" are one id.

    >>> text_of(12.0), text_of(" sku-4 "), text_of("")
    ('12', 'sku-4', None)
    """
    if isinstance(value, (Mapping, list, tuple, bytes)):
        raise DataError(f"is a {type(value).__name__}, not an id or a text", value=value)
    text = plain(value)
    # JSON may hold half of a surrogate pair, which no file in UTF-8 can.
    return (text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")) or None


def object_of(value: object, name: str) -> Mapping[str, Any]:
    """A nested object, also where an export wrote it as JSON text; empty for nothing."""
    value = _unwrapped(value, name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError("is not an object", column=name, value=value)
    return value


def list_of(value: object, name: str) -> list[Any]:
    """A nested list, also as JSON text and in the ``list``/``element`` wrapping of Parquet exports."""
    value = _unwrapped(value, name)
    if isinstance(value, Mapping) and set(value) == {"list"}:
        value = [e.get("element") if isinstance(e, Mapping) and "element" in e else e for e in value["list"] or []]
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise DataError("is not a list", column=name, value=value)
    return list(value)


def objects_of(value: object, name: str) -> list[Mapping[str, Any]]:
    """A nested list of objects."""
    return [object_of(member, name) for member in list_of(value, name)]


def _unwrapped(value: object, name: str) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed: object = json.loads(value)
    except (ValueError, RecursionError):
        raise DataError("is not JSON", column=name, value=value) from None
    return parsed


RECORDS = MappingProxyType({"ubi": ubi, "ga4": ga4, "segment": segment, "snowplow": snowplow})
MEANINGS = MappingProxyType(
    {"ubi": UBI_ACTIONS, "ga4": GA4_EVENTS, "segment": SEGMENT_EVENTS, "snowplow": SNOWPLOW_TYPES}
)
