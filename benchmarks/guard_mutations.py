"""Whether the tests notice when a guard of the server is gone: each is taken away once, and a test has to fail.

    python benchmarks/guard_mutations.py                    # all of them, half an hour or so
    python benchmarks/guard_mutations.py --only protocol    # those with the word in file, fault, guard or test
    python benchmarks/guard_mutations.py --list

``TABLE`` has the guards by fault, as the rows of ``docs/reliability.md`` begin: what is replaced in which file, and
the test that should fail then. The checkout stays as it is: everything happens in a copy of it, with a Python of its
own that imports the package from there. All tests named here have to pass on the unchanged copy first; then one guard
at a time is taken away and only its tests run. A guard is noticed where a test fails, or where it does not end in its
time, which is said; a test that cannot begin is not enough. A machine that is busy elsewhere can make a test fail
too, which would look as if it had noticed something.

Guards of others are not in the table: what h11 refuses by itself (chunk sizes, spaces before colons, lengths that are
no numbers), what msgspec refuses (numbers out of range, texts for numbers), what the system does. Nor are those whose
absence nothing outside can see: that keys are compared in constant time, and that at a second SIGTERM requests are
cancelled a moment before asyncio does it. ``WITHOUT`` has the faults that no guard stands against. Ends with 1 where a
guard is not noticed, or is no longer found in its file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
LIMIT = 120.0  # seconds for the tests of one guard
BASELINE_LIMIT = 3_600.0


class Edit(NamedTuple):
    """A text that occurs once in a file below ``pertinent/``, and what stands there without the guard."""

    file: str
    old: str
    new: str


class Mutation(NamedTuple):
    """A guard that is taken away, and the tests that should notice, by name; ``more`` are guards behind it."""

    guard: str
    file: str
    old: str
    new: str
    # Names with spaces between, `test_file.py::` before one that two files have, `_` for a space in brackets.
    tests: str
    more: tuple[Edit, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All that is replaced."""
        return (Edit(self.file, self.old, self.new), *self.more)


class Outcome(NamedTuple):
    """What the tests said, which of them failed, and how long they took."""

    said: str
    failed: str
    seconds: float

    @property
    def held(self) -> bool:
        """Whether the tests are as they should be; tests that cannot run on this machine are."""
        return self.said != NOT_NOTICED and not self.said.startswith(BROKEN)


NOTICED, NOT_NOTICED, BROKEN, SKIPPED = "noticed", "NOT NOTICED", "BROKEN", "skipped here"

PROTOCOL, LIMITS, APP, RUN = "serving/protocol.py", "serving/limits.py", "serving/app.py", "serving/run.py"
QUEUE, READING, NATIVE, ACCESS = "serving/queue.py", "serving/reading.py", "serving/native.py", "serving/access.py"
DIALECTS, WIRE, REGISTRY, TELEMETRY = (f"serving/{name}.py" for name in ("dialects", "wire", "registry", "telemetry"))
ARTIFACT, GRAPH, SCORER, INDEX = "artifact.py", "engine/graph.py", "engine/scorer.py", "engine/index.py"
MEMORY = "serving/memory.py"
REDIS, CACHE, PAIRS = "engine/redis_scores.py", "engine/cache.py", "lexicon/pairs.py"
NEVER = "except ZeroDivisionError"

RAW = "test_raw_requests_get_an_answer_or_a_clean_refusal"
SMUGGLING = "test_smuggling_probes_are_refused_and_what_follows_them_is_never_read"
SLOW = "test_slow_heads_and_bodies_end_with_408_and_take_no_place"
TOO_LARGE = "test_what_is_too_large_is_refused_before_it_is_read"
BOMBS = "test_compression_bombs_take_no_more_memory_than_a_body"
BODIES = "test_bodies_of_any_kind_get_an_answer_that_says_why"
TOO_MUCH = "test_empty_blank_and_too_much"
DOES_NOT_FIT = "test_native.py::test_what_does_not_fit_is_refused_by_name"
BAD_ITEMS = "test_items_without_a_text_or_in_no_index_are_refused_by_place_where_that_is_wanted"
UNKNOWN = "test_unknown_and_stale_ids_are_told_and_the_others_scored"
NOT_FINITE = "test_a_score_that_is_no_number_is_one_items_fault_many_are_an_error"
SHED = "test_overload_is_shed_at_once_and_what_is_taken_is_answered"
QUEUE_FULL = "test_too_much_is_refused_with_a_time_to_come_again"
BROKEN_MANIFEST = "test_a_broken_manifest_is_one_line"
BAD_GRAPHS = "test_bad_graphs_are_refused_with_the_reason"
OTHER_GRAPHS = "test_no_output_sparse_and_oversized_graphs_are_refused"
UNDER_WAY = "test_what_is_under_way_when_it_waits_no_longer_gets_a_503_and_when_to_come_again"
SIGTERM = "test_sigterm_under_load_cuts_no_answer_and_ends_with_0"
KEYS = "test_keys_are_asked_for_and_never_shown"
ROTATION = "test_keys_are_rotated_without_a_restart_and_a_broken_file_keeps_the_old"
STAMP = "test_a_changed_title_model_lexicon_backend_or_calibration_misses"
CACHES = "caches"  # their faults are in docs/caches.md

TABLE: dict[str, tuple[Mutation, ...]] = {
    # --- connection and HTTP ------------------------------------------------------------------
    "two or conflicting lengths": (
        Mutation("a line feed alone", PROTOCOL, r'rb"(?<!\r)\n|\r\n[ \t]|^', r'rb"\r\n[ \t]|^', RAW),
        Mutation("a folded header", PROTOCOL, r"\n|\r\n[ \t]|^", r"\n|^", RAW),
        Mutation(
            "another version of HTTP", PROTOCOL, r'_VERSION.match(head.lstrip(b"\r\n")) is not None and ', "", RAW
        ),
        Mutation("one length twice", PROTOCOL, " and len(_LENGTHS.findall(head)) < 2", "", RAW),
        Mutation("length and chunks", LIMITS, "if len(lengths) > 1 or (lengths and chunked):", "if False:", RAW),
        Mutation(
            "a transfer encoding that nobody has is a 400",
            PROTOCOL,
            "self._refuse(status if status < 500 else 400,",
            "self._refuse(status,",
            SMUGGLING,
        ),
        Mutation(
            "the connection is closed where the head is not clean",
            PROTOCOL,
            'self.transport.write(head.encode("ascii") + body)\n        self.transport.close()',
            'self.transport.write(head.encode("ascii") + body)',
            SMUGGLING,
        ),
        Mutation(
            "the connection is closed where nobody knows the end of a body",
            APP,
            "close = reply.status in (400, 408, 414, 431) and not exchange.read",
            "close = False",
            SMUGGLING,
        ),
    ),
    "lengths that lie": (
        Mutation(
            "an announced length",
            LIMITS,
            "if length and (not length.isdigit() or int(length[:20]) > limits.body_bytes):",
            "if False:",
            "test_lengths_that_lie_are_told_and_take_no_memory",
        ),
    ),
    "head over 16 KB": (
        Mutation("length of the URL", LIMITS, "if url > limits.url_bytes:", "if False:", TOO_LARGE),
        Mutation(
            "size of all headers",
            LIMITS,
            "if size > limits.header_bytes or len(headers) > limits.headers:",
            "if len(headers) > limits.headers:",
            "test_heads_beyond_the_limits_are_refused",
        ),
        Mutation(
            "number of headers",
            LIMITS,
            "if size > limits.header_bytes or len(headers) > limits.headers:",
            "if size > limits.header_bytes:",
            TOO_LARGE,
        ),
        Mutation(
            "size of a head, before and after it is read",
            PROTOCOL,
            "if len(head) > self._limits.header_bytes + self._limits.url_bytes:",
            "if False:",
            TOO_LARGE,
            (
                Edit(
                    LIMITS,
                    "if size > limits.header_bytes or len(headers) > limits.headers:",
                    "if len(headers) > limits.headers:",
                ),
            ),
        ),
        Mutation(
            "a body that grows beyond the limit",
            LIMITS,
            "                if size > limits.body_bytes:\n                    raise _too_large(limits)",
            "                if False:\n                    raise _too_large(limits)",
            TOO_LARGE,
        ),
        Mutation(
            "a client that sends on after its answer",
            PROTOCOL,
            "if unread:",
            "if False:",
            "test_a_client_that_sends_on_after_its_answer_is_cut_off",
        ),
    ),
    "slow head or body": (
        Mutation(
            "time for a head",
            PROTOCOL,
            "self._head_timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)",
            "pass",
            SLOW,
        ),
        Mutation(
            "a byte now and then is no new head",
            PROTOCOL,
            "if self._head_timer is None:\n                self._await_head()\n            self._head += data",
            "self._stop_head_timer()\n            self._await_head()\n            self._head += data",
            SLOW,
        ),
        Mutation("time for a body", LIMITS, "asyncio.timeout(limits.body_seconds)", "asyncio.timeout(None)", SLOW),
        Mutation(
            "a byte now and then is no new body",
            LIMITS,
            "asyncio.timeout(limits.body_seconds)",
            "asyncio.timeout(None)",
            SLOW,
            (
                Edit(
                    LIMITS,
                    "message = await receive()",
                    "message = await asyncio.wait_for(receive(), limits.body_seconds)",
                ),
            ),
        ),
    ),
    "10,000 idle connections": (
        Mutation(
            "the cap on connections",
            PROTOCOL,
            "if len(self.connections) > self._limits.connections and not",
            "if False and not",
            "test_beyond_the_cap_the_longest_idle_connection_is_closed",
        ),
        Mutation(
            "no room where all are busy",
            PROTOCOL,
            "                return True\n        return False",
            "                return True\n        return True",
            "test_where_all_connections_are_busy_a_new_one_is_refused_but_on_the_admin_port",
        ),
        Mutation(
            "the admin port has room",
            PROTOCOL,
            " and not self._is_admin() and not self._close_oldest()",
            " and not self._close_oldest()",
            "test_where_all_connections_are_busy_a_new_one_is_refused_but_on_the_admin_port",
        ),
        Mutation(
            "who waits for an answer is not idle",
            PROTOCOL,
            "            self._idle.pop(self, None)\n            self._head.clear()",
            "            self._head.clear()",
            "test_where_all_connections_are_busy_a_new_one_is_refused_but_on_the_admin_port",
        ),
    ),
    "client resets": (
        Mutation(
            "a client that leaves is noticed",
            APP,
            "gone.add_done_callback(leave)",
            "pass",
            "test_a_client_that_leaves_frees_its_place",
        ),
        Mutation(
            "its work is dropped",
            QUEUE,
            "            self._drop(job)",
            "            pass",
            "test_a_cancelled_request_is_dropped_at_the_next_batch",
        ),
        Mutation(
            "it is counted", APP, "self._note(exchange, 499)", "pass", "test_a_client_that_leaves_frees_its_place"
        ),
        Mutation(
            "a client that leaves in its body",
            LIMITS,
            'if message["type"] == "http.disconnect":',
            "if False:",
            "test_a_client_that_leaves_in_its_body_is_counted_as_such",
        ),
        Mutation(
            "a client that leaves as its answer comes",
            APP,
            "if not over:  # both may end",
            "if True:  # both may end",
            "test_a_client_that_leaves_as_its_answer_comes_cancels_nothing_afterwards",
        ),
    ),
    "client does not read its answer": (
        Mutation(
            "time for an answer",
            PROTOCOL,
            "self._later(self._limits.write_seconds, self._abort_if_unwritten)",
            "pass",
            "test_a_client_that_does_not_read_is_cut_off",
        ),
    ),
    "pipelining": (
        Mutation(
            "HEAD is answered as GET",
            APP,
            'method = "GET" if scope["method"] == "HEAD" else scope["method"]',
            'method = scope["method"]',
            "test_unusual_but_right_http_is_answered",
        ),
        Mutation(
            "OPTIONS is answered",
            APP,
            'if method == "OPTIONS":',
            "if False:",
            "test_unusual_but_right_http_is_answered",
        ),
    ),
    "other or no content type": (
        Mutation(
            "the content type",
            LIMITS,
            "if not _JSON.fullmatch(media.strip().lower()):",
            "if False:",
            "test_other_media_are_refused",
        ),
        Mutation(
            "the charset",
            LIMITS,
            'if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):',
            "if False:",
            "test_other_media_are_refused",
        ),
    ),
    "gzip and zstd bombs": (
        Mutation(
            "what comes out is counted",
            LIMITS,
            "            size += len(part)\n            if size > limits.body_bytes:\n                raise",
            "            size += len(part)\n            if False:\n                raise",
            BOMBS,
        ),
        Mutation("nested and unknown encodings", LIMITS, "if encoding not in _ENCODINGS:", "if False:", BOMBS),
        Mutation("a cut stream", LIMITS, 'raise EOFError("it is cut short")', "return", BOMBS),
        Mutation("a window of 128 MB", LIMITS, "max_window_size=_MAX_WINDOW", "", BOMBS),
    ),
    "trailing and doubled slashes": (
        Mutation(
            "slashes",
            WIRE,
            'return re.sub("/{2,}", "/", path).rstrip("/") or "/"',
            "return path",
            "test_trailing_and_doubled_slashes_reach_the_same_route",
        ),
    ),
    "port in use": (
        Mutation(
            "a port that cannot be had",
            RUN,
            "except OSError as error:",
            NEVER + " as error:",
            "test_a_port_in_use_is_told",
        ),
        Mutation(
            "IPv6 in the address",
            RUN,
            "{f'[{host}]' if ':' in host else host}",
            "{host}",
            "test_an_address_of_ipv6_alone_is_listened_on",
        ),
    ),
    # --- JSON and content ---------------------------------------------------------------------
    "depth of 200,000": (
        Mutation("byte order mark", READING, "body = body.removeprefix(_MARK)", "pass", BODIES),
        Mutation("depth", READING, "except RecursionError:", f"{NEVER}:", BODIES),
        Mutation("bytes that are not UTF-8", READING, "except UnicodeDecodeError:", f"{NEVER}:", BODIES),
        Mutation("what is no JSON", READING, "except msgspec.DecodeError as", f"{NEVER} as", BODIES),
        Mutation("fields of another kind", READING, "except msgspec.ValidationError as", f"{NEVER} as", BODIES),
        Mutation("NaN and Infinity", READING, "if name is not None:", "if False:", BODIES),
        Mutation("what is no object", READING, "if not field:", "if False:", BODIES),
        Mutation(
            "a negative count",
            READING,
            "if value != int(value) or value < least:",
            "if value != int(value):",
            "test_anything_else_is_a_422_that_names_the_field",
        ),
        Mutation(
            "a broken count",
            READING,
            "if value != int(value) or value < least:",
            "if value < least:",
            "test_anything_else_is_a_422_that_names_the_field",
        ),
    ),
    "any JSON on any route": (
        Mutation(
            "a field that is missing",
            READING,
            'if value is None:\n        raise WireError(422, f"{field} is missing',
            'if False:\n        raise WireError(422, f"{field} is missing',
            "test_what_must_be_there_is_named_when_it_is_missing",
        ),
        Mutation(
            "a query without a text",
            READING,
            "if not isinstance(text, str):",
            "if False:",
            "test_a_query_that_is_no_text_is_a_422",
        ),
        Mutation(
            "a document of another kind",
            READING,
            "if isinstance(value, bool) or not isinstance(value, kinds):",
            "if False:",
            "test_documents_of_another_kind_are_a_422_that_names_them",
        ),
        Mutation(
            "a document without a text",
            READING,
            'if "text" not in value:',
            "if False:",
            "test_documents_of_another_kind_are_a_422_that_names_them",
        ),
        Mutation(
            "a pair that is none",
            DIALECTS,
            'raise WireError(422, message, "invalid_field", "inputs")',
            'return "", ""',
            "test_predict_wants_pairs",
        ),
        Mutation(
            "texts and documents in one body",
            WIRE,
            "if _set(marks.texts) == _set(marks.documents):",
            "if False:",
            "test_both_shapes_or_none_on_rerank_is_a_422_that_names_both",
        ),
        Mutation(
            "as many queries as documents",
            DIALECTS,
            "if len(queries) not in (1, len(documents)):",
            "if False:",
            "test_score_pairs_texts_one_to_one_or_one_to_many_and_nothing_else",
        ),
        Mutation(
            "unknown fields on the native route",
            NATIVE,
            "class RelevanceBody(msgspec.Struct, forbid_unknown_fields=True):",
            "class RelevanceBody(msgspec.Struct):",
            DOES_NOT_FIT,
        ),
        Mutation("ids, rows and texts in one body", NATIVE, "if len(given) != 1:", "if False:", DOES_NOT_FIT),
        Mutation("what is no base64", NATIVE, "except (binascii.Error, ValueError):", f"{NEVER}:", DOES_NOT_FIT),
        Mutation("base64 of no numbers", NATIVE, "if len(content) % 4:", "if False:", DOES_NOT_FIT),
        Mutation(
            "rows beyond 64 bits",
            NATIVE,
            "except OverflowError:",
            f"{NEVER}:",
            "test_unknown_ids_are_told_one_by_one",
        ),
        Mutation(
            "columns of another length",
            NATIVE,
            "if scores is not None and len(scores) != count:",
            "if False:",
            DOES_NOT_FIT,
        ),
    ),
    "half of a surrogate pair": (
        Mutation(
            "it is mended",
            READING,
            "if not repaired:",
            "if True:",
            "test_a_lone_surrogate_is_the_fault_of_one_document",
        ),
        Mutation(
            "it is told",
            APP,
            "if repaired:",
            "if False:",
            "test_a_lone_surrogate_is_the_fault_of_one_document",
        ),
    ),
    "NUL, control, bidi": (
        Mutation(
            "characters that nobody sees",
            "text.py",
            'return category[0] != "C" or character.isspace()',
            "return True",
            "test_normalize_by_hand",
        ),
        Mutation(
            "the same in ASCII",
            "text.py",
            'text = text if text.isprintable() else "".join(c for c in text if c.isprintable() or c.isspace())',
            "pass",
            "test_normalize_by_hand",
        ),
        Mutation(
            "half characters where the tokenizer normalizes",
            PAIRS,
            'text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")',
            "text[:MAX_CHARACTERS]",
            "test_any_text_becomes_rows_within_the_limit_and_free_of_control_tokens",
        ),
    ),
    "text that looks like special tokens": (
        Mutation(
            "control tokens are read as letters",
            PAIRS,
            "self.tokenizer.encode_special_tokens = True",
            "self.tokenizer.encode_special_tokens = False",
            "test_any_text_becomes_rows_within_the_limit_and_free_of_control_tokens",
        ),
        Mutation(
            "also where they are listed as words",
            PAIRS,
            "if ordinary:",
            "if False:",
            "test_a_control_token_listed_as_an_ordinary_added_word_is_still_not_typed",
        ),
    ),
    "a title of a megabyte": (
        Mutation(
            "texts are cut before they are read",
            "text.py",
            "text = text[:max_characters]",
            "pass",
            "test_a_megabyte_is_cut_before_it_is_read",
        ),
        Mutation(
            "also where the tokenizer normalizes",
            PAIRS,
            'text[:MAX_CHARACTERS].encode("utf-8", "replace")',
            'text.encode("utf-8", "replace")',
            "test_any_text_becomes_rows_within_the_limit_and_free_of_control_tokens",
        ),
    ),
    "empty list; blank query": (
        Mutation("no documents", READING, "if not values:", "if False:", TOO_MUCH),
        Mutation("too many documents", LIMITS, "if count > limits.documents:", "if False:", TOO_MUCH),
        Mutation("too many characters", LIMITS, "if characters > limits.characters:", "if False:", TOO_MUCH),
        Mutation(
            "too many characters on the native route",
            NATIVE,
            'if len(body.query) + sum(len(text or "") for text in body.texts or ()) > limits.characters:',
            "if False:",
            TOO_MUCH,
        ),
        Mutation("too many rows", NATIVE, "    check_documents(len(given), limits, field)", "    pass", DOES_NOT_FIT),
        Mutation(
            "too many texts on the native route",
            NATIVE,
            'check_documents(count, limits, "texts")',
            "pass",
            DOES_NOT_FIT,
        ),
        Mutation("an unknown model", REGISTRY, "if found is None and self._any:", "if found is None:", TOO_MUCH),
        Mutation(
            "blank documents come last",
            APP,
            "lowest = np.union1d(broken, blank)",
            "lowest = broken",
            "test_blank_and_null_documents_come_last_and_are_counted",
        ),
    ),
    "the same with `--bad-items reject`": (
        Mutation(
            "blank documents",
            APP,
            'self._check_items("blank", "its text is null or blank", request.bad)',
            "pass",
            BAD_ITEMS,
        ),
        Mutation(
            "unknown ids",
            APP,
            'self._check_items("unknown", "its id is not in the index", prepared.unknown.tolist())',
            "pass",
            BAD_ITEMS,
        ),
        Mutation(
            "blank texts on the native route",
            APP,
            'self._check_items("blank", "its text is null or blank", prepared.blank.tolist())',
            "pass",
            BAD_ITEMS,
        ),
    ),
    "1 to 10,000 documents": (
        Mutation(
            "ties by place",
            "serving/messages.py",
            'np.argsort(-scores, kind="stable").astype',
            'np.argsort(scores, kind="stable")[::-1].astype',
            "test_a_pair_scores_the_same_in_lists_of_any_size",
        ),
    ),
    "unknown, deleted and stale ids": (
        Mutation(
            "rows outside of the index",
            NATIVE,
            "return np.where((rows >= 0) & (rows < len(served.index)), rows, -1)",
            "return rows",
            "test_unknown_ids_are_told_one_by_one",
        ),
        Mutation(
            "ids are compared, not their digests alone",
            INDEX,
            "found[hits[same]] = rows[same]",
            "found[hits] = rows",
            "test_equal_digests_of_different_ids_are_told_apart",
        ),
        Mutation(
            "rows that nobody has",
            INDEX,
            "if len(outside):",
            "if False:",
            "test_unknown_ids_and_rows_outside_are_refused",
        ),
        Mutation("they are counted", APP, 'self.metrics.bad("unknown", len(prepared.unknown))', "pass", UNKNOWN),
        Mutation(
            "many of them are told",
            APP,
            "if asked >= _IDS_SEEN and unknown / asked > self.config.unknown_share:",
            "if False:",
            "test_ids_that_no_index_has_and_versions_that_were_not_taken_degrade_health",
        ),
        Mutation("they are told", APP, "len(prepared.blank) + len(prepared.unknown)", "len(prepared.blank)", UNKNOWN),
    ),
    "an index, hot pairs or behavior that were not refreshed": (
        Mutation(
            "age is looked at",
            APP,
            "                if hours > self.config.stale_hours:\n",
            "                if False:\n",
            "test_what_is_older_than_it_may_be_makes_it_unready_where_that_is_set",
        ),
        Mutation(
            "the age is that of the making, not of a copy",
            ARTIFACT,
            "        return datetime.fromisoformat(str(created)).timestamp()\n",
            "        raise ValueError\n",
            "test_how_old_parts_are_is_told_by_their_manifests",
        ),
        Mutation(
            "hot pairs that are not used are told",
            APP,
            "            for name in self.models.without_hot_pairs()\n",
            "            for name in ()\n",
            "test_scores_made_ahead_that_are_not_used_degrade_health",
        ),
    ),
    "a score that is no number": (
        Mutation(
            "one of an answer",
            APP,
            "broken = np.flatnonzero(~np.isfinite(logits) & result.scored)",
            "broken = np.zeros(0, dtype=np.int64)",
            NOT_FINITE,
        ),
        Mutation(
            "many of an answer",
            APP,
            "if len(broken) and len(broken) >= NOT_FINITE_SHARE * len(logits):",
            "if False:",
            NOT_FINITE,
        ),
        Mutation(
            "none is written",
            DIALECTS,
            "    if broken:",
            "    if False:",
            "test_a_score_that_is_no_number_is_never_written",
        ),
        Mutation(
            "none leaves the library",
            SCORER,
            "    if broken:",
            "    if False:",
            "test_scores_that_are_not_finite_are_counted_and_refused",
        ),
    ),
    # --- overload -----------------------------------------------------------------------------
    "more than the capacity": (
        Mutation(
            "requests that wait",
            QUEUE,
            "if len(self._jobs) >= config.max_requests:",
            "if False:",
            f"{QUEUE_FULL}[settings0-requests]",
        ),
        Mutation(
            "pairs that wait",
            QUEUE,
            "if self._pairs + size > config.max_pairs:",
            "if False:",
            f"{QUEUE_FULL}[settings1-pairs]",
        ),
        Mutation("the wait", QUEUE, "if ahead > config.max_wait_ms / 1000:", "if False:", SHED),
        Mutation(
            "the deadline",
            QUEUE,
            "if time_left is not None and needed > _PLANNED * time_left:",
            "if False:",
            "test_three_times_what_can_be_done_is_refused_rather_than_late",
        ),
        Mutation("when to come again", APP, "if found.retry_after is not None:", "if False:", SHED),
        Mutation(
            "not before a second",
            APP,
            "milliseconds = max(1_000, round(found.retry_after * 1000))",
            "milliseconds = round(found.retry_after * 1000)",
            SHED,
            (Edit(QUEUE, "retry = min(max(whole, 1.0), 60.0)", "retry = min(whole, 60.0)"),),
        ),
        Mutation(
            "not all at once",
            QUEUE,
            "self.retry_after = spread(retry_after)",
            "self.retry_after = retry_after",
            "test_those_who_are_refused_together_do_not_come_back_together",
        ),
    ),
    "a long body when there is no room": (
        Mutation(
            "it is refused before it comes",
            APP,
            "        if pairs:",
            "        if False:",
            "test_a_long_body_is_refused_before_it_comes_and_the_connection_goes_on",
        ),
        Mutation(
            "the connection goes on",
            APP,
            "close = reply.status in (400, 408, 414, 431) and not exchange.read",
            "close = not exchange.read",
            "test_a_long_body_is_refused_before_it_comes_and_the_connection_goes_on",
        ),
    ),
    "the model fails": (
        Mutation(
            "word overlap stands in",
            APP,
            "if not body.fallback:",
            "if True:",
            "test_word_overlap_stands_in_for_a_model_that_fails_where_that_is_asked_for",
        ),
    ),
    "item states of another version": (
        Mutation(
            "their version",
            INDEX,
            "if self.states.version != version:",
            "if False:",
            "test_states_of_another_version_are_left_and_titles_computed",
        ),
        Mutation(
            "titles are computed instead",
            REGISTRY,
            'except ArtifactError as error:\n            _log.warning("model %s: item states',
            f'{NEVER} as error:\n            _log.warning("model %s: item states',
            "test_states_of_another_version_are_left_and_titles_computed",
        ),
    ),
    "many searches of the index": (
        Mutation(
            "few wait",
            "serving/candidates.py",
            "if self._asked > _WAITING:",
            "if False:",
            "test_one_search_runs_at_a_time_and_few_wait_for_it",
        ),
        Mutation(
            "one at a time",
            "serving/candidates.py",
            "async with self._turn:",
            "if True:",
            "test_one_search_runs_at_a_time_and_few_wait_for_it",
        ),
    ),
    "small requests beside large ones": (
        Mutation(
            "who has waited longest against its size is next",
            QUEUE,
            "return self._served[job.key], job.work.priority, True, -stretch",
            "return self._served[job.key], job.work.priority, True, 0.0",
            "test_a_small_request_does_not_wait_for_a_huge_one",
        ),
        Mutation(
            "what was taken on is done in time",
            QUEUE,
            "if now + needed > deadline - (1 - _PLANNED) * (deadline - job.submitted):",
            "if False:",
            "test_large_requests_that_were_taken_on_are_done_in_time_beside_too_many_small_ones",
        ),
    ),
    "deadline passes while waiting": (
        Mutation(
            "the deadline",
            QUEUE,
            "asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic()))",
            "asyncio.timeout(None)",
            "test_past_the_deadline_an_answer_is_partial_where_asked_and_an_error_elsewhere",
        ),
        Mutation(
            "a part only where asked",
            QUEUE,
            "if partial or result.scored.all():",
            "if True:",
            "test_past_the_deadline_an_answer_is_partial_where_asked_and_an_error_elsewhere",
        ),
        Mutation(
            "nothing more is computed",
            QUEUE,
            "            self._drop(job)",
            "            pass",
            "test_a_deadline_that_passed_while_waiting_costs_no_computing",
        ),
        Mutation(
            "a client's own deadline",
            APP,
            "min(limit, body.deadline_ms or limit) / 1000",
            "limit / 1000",
            "test_a_deadline_gives_504_or_a_marked_part",
        ),
    ),
    "one client floods": (
        Mutation(
            "its share of the requests",
            QUEUE,
            "len(mine) + 1 > config.key_share * config.max_requests\n            or ",
            "",
            f"{QUEUE_FULL}[settings2-key]",
        ),
        Mutation(
            "its share of the pairs",
            QUEUE,
            "            or sum(other.left for other in mine) + size > config.key_share * config.max_pairs\n",
            "",
            f"{QUEUE_FULL}[settings3-key]",
        ),
        Mutation(
            "its turns",
            QUEUE,
            "self._served[job.key] += tokens",
            "pass",
            "test_a_key_with_many_requests_leaves_the_others_their_turn",
        ),
    ),
    "batches of the longest texts": (
        Mutation(
            "tokens of batches put together",
            QUEUE,
            "if together > min(self.config.batch_tokens, apart + piece.padded + RUN_OVERHEAD):",
            "if False:",
            "test_batches_of_the_longest_texts_keep_to_the_token_budget",
        ),
        Mutation(
            "tokens of one batch",
            "engine/batching.py",
            "pieces = -(-len(rows) // max(1, max_tokens // width))",
            "pieces = 1",
            "test_batches_of_the_longest_texts_keep_to_the_token_budget",
        ),
    ),
    "a container with fewer cores": (
        Mutation(
            "the quota",
            "engine/backends.py",
            "cores = min(cores, max(1, int(quota) // int(period)))",
            "pass",
            "test_cores_follow_the_quota_of_the_container",
        ),
    ),
    "more threads than cores": (
        Mutation(
            "threads of all workers",
            RUN,
            "if config.threads is not None and config.threads * config.workers > max(cores, config.threads):",
            "if False:",
            "test_what_would_open_the_server_or_crowd_its_cores_is_refused_before_anything_is_opened",
        ),
    ),
    # --- models and caches --------------------------------------------------------------------
    "bit flip, cut": (
        Mutation("digests", ARTIFACT, 'if digest != entry["sha256"]:', "if False:", "test_any_flipped_bit_is_found"),
        Mutation("sizes", ARTIFACT, 'if size != entry["bytes"]:', "if False:", "test_a_cut_file_is_found_by_its_size"),
        Mutation("missing files", ARTIFACT, "if not file.exists():", "if False:", "test_a_missing_file_is_named"),
        Mutation(
            "the version is that of the files",
            ARTIFACT,
            'if manifest["version"] != _version(manifest["kind"], manifest["files"]) or (',
            "if (",
            "test_an_edited_manifest_is_found",
        ),
        Mutation(
            "the record is as it was written",
            ARTIFACT,
            'manifest.get("record_sha256", record) != record',
            "False",
            "test_an_edited_manifest_is_found",
        ),
        Mutation(
            "a page saved as a manifest",
            ARTIFACT,
            "except (OSError, ValueError, RecursionError) as error:",
            f"{NEVER} as error:",
            "test_a_manifest_that_is_not_json_is_one_line",
        ),
        Mutation(
            "parts of a manifest",
            ARTIFACT,
            "if not all(isinstance(manifest.get(k), t) for k, t in wanted.items()):",
            "if False:",
            BROKEN_MANIFEST,
        ),
        Mutation(
            "sizes that are none",
            ARTIFACT,
            'if not (isinstance(entry, dict) and type(entry.get("bytes")) is int and 0 <= entry["bytes"] < 1 << 63):',
            "if False:",
            BROKEN_MANIFEST,
        ),
        Mutation(
            "digests that are none",
            ARTIFACT,
            'if not (isinstance(entry.get("sha256"), str) and re.fullmatch("[0-9a-f]{64}", entry["sha256"])):',
            "if False:",
            BROKEN_MANIFEST,
        ),
        Mutation(
            "arrays that do not fit their file",
            "engine/arrays.py",
            'if entry["dtype"] != kind or not start <= first <= last <= len(payload) or (last - first) % width:',
            "if False:",
            "test_cut_and_damaged_files_are_refused_not_crashed_on",
        ),
        Mutation(
            "offsets that lead outside",
            INDEX,
            "    if not fits:",
            "    if False:",
            "test_offsets_that_lead_outside_are_refused",
        ),
        Mutation(
            "the old version stays where the new one is bad",
            REGISTRY,
            "except Exception as error:  # whatever",
            f"{NEVER} as error:  # whatever",
            "test_an_index_of_another_model_is_not_taken",
        ),
    ),
    "manifest of another format version": (
        Mutation(
            "the format version",
            ARTIFACT,
            'if manifest["format_version"] != FORMAT_VERSION:',
            "if False:",
            "test_another_format_version_says_what_to_do",
        ),
    ),
    "tokenizer and embedding of other sizes": (
        Mutation(
            "tokens and rows",
            "models/store.py",
            "if pairs.vocabulary_size > rows:",
            "if False:",
            "test_scorer.py::test_a_tokenizer_of_another_model_is_refused",
        ),
        Mutation(
            "length and positions",
            SCORER,
            "if positions is not None and pairs.config.length > positions:",
            "if False:",
            "test_layouts_longer_than_the_model_are_refused",
        ),
        Mutation(
            "an index of another tokenizer",
            INDEX,
            "if wanted != self.tokenizer_digest:",
            "if False:",
            "test_an_index_of_another_model_is_not_taken",
        ),
    ),
    "golden scores differ": (
        Mutation(
            "they are computed",
            SCORER,
            "if check_golden and artifact.has(GOLDEN_FILE):",
            "if False:",
            "test_golden_scores_that_differ_keep_a_new_model_out",
        ),
        Mutation(
            "they are compared",
            SCORER,
            "if not difference <= tolerance:",
            "if False:",
            "test_golden_scores_that_differ_keep_a_new_model_out",
        ),
        Mutation(
            "NaN is far from all of them",
            "engine/golden.py",
            "nan=1.0",
            "nan=0.0",
            "test_golden_difference_of_what_is_not_finite_is_one",
        ),
        Mutation(
            "one for each pair",
            "engine/golden.py",
            "if wanted.shape != (len(pairs),):",
            "if False:",
            "test_damaged_golden_files_are_refused",
        ),
    ),
    "pickles and code": (
        Mutation(
            "in a folder that is opened",
            ARTIFACT,
            "    if refused:",
            "    if False:",
            "test_a_smuggled_file_that_could_run_code_is_refused",
        ),
        Mutation(
            "in a folder that is written",
            ARTIFACT,
            "assert file.suffix not in REFUSED_SUFFIXES, name",
            "pass",
            "test_refused_kinds_are_never_written",
        ),
    ),
    "links, pipes, devices, `..`": (
        Mutation(
            "links",
            ARTIFACT,
            "if os.path.realpath(path / name) != os.path.join(inside, name):",
            "if False:",
            "test_a_link_is_refused_even_to_the_right_content",
        ),
        Mutation(
            "a link as manifest",
            ARTIFACT,
            'for name in (MANIFEST, *manifest["files"]):',
            'for name in manifest["files"]:',
            "test_a_link_is_refused_even_to_the_right_content",
        ),
        Mutation(
            "pipes and devices",
            ARTIFACT,
            "if not file.is_file():",
            "if False:",
            "test_pipes_sockets_and_devices_are_refused_unread",
        ),
        Mutation(
            "names that lead outside",
            ARTIFACT,
            'if ".." in Path(name).parts or Path(name).is_absolute():',
            "if False:",
            "test_a_manifest_cannot_reach_out_of_its_folder",
        ),
    ),
    "ONNX with data elsewhere": (
        Mutation("size of the file", GRAPH, "if len(content) > MAX_GRAPH_BYTES:", "if False:", OTHER_GRAPHS),
        Mutation("operators", GRAPH, "    if refused:", "    if False:", BAD_GRAPHS),
        Mutation(
            "operators of others",
            GRAPH,
            'operator if domain in ("", "ai.onnx") else f"{domain}.{operator}"',
            "operator",
            BAD_GRAPHS,
        ),
        Mutation("an output", GRAPH, "if not summary.outputs:", "if False:", OTHER_GRAPHS),
        Mutation("functions", GRAPH, "elif number in (20, 25):", "elif False:", BAD_GRAPHS),
        Mutation("sparse weights", GRAPH, "elif number == 15:", "elif False:", OTHER_GRAPHS),
        Mutation("control flow", GRAPH, "if number in (6, 11):", "if False:", BAD_GRAPHS),
        Mutation(
            "attributes elsewhere",
            GRAPH,
            "if number in (5, 10) and _tensor(_bytes(value))[3]:",
            "if False:",
            BAD_GRAPHS,
        ),
        Mutation("sparse attributes", GRAPH, "if number in (22, 23):", "if False:", BAD_GRAPHS),
        Mutation(
            "shapes",
            GRAPH,
            "if prod(shape) > MAX_TENSOR_ELEMENTS or any(size < 0 for size in shape):",
            "if False:",
            BAD_GRAPHS,
        ),
        Mutation("weights of another type elsewhere", GRAPH, "if kind != _FLOAT:", "if False:", BAD_GRAPHS),
        Mutation("what is cut", GRAPH, "if place + size > len(view):", "if False:", BAD_GRAPHS),
    ),
    "swap under load": (
        Mutation(
            "an answer names the version that it is from",
            APP,
            "headers = _headers(served, result, len(request.bad)",
            "headers = _headers(self.models.get(request.model), result, len(request.bad)",
            "test_swaps_under_load_fail_no_request_and_mix_no_versions",
        ),
        Mutation(
            "one reload at a time",
            APP,
            "async with self._reloading:",
            "if True:",
            "test_reloads_that_are_asked_for_at_once_take_turns",
        ),
    ),
    "half-written artifact": (
        Mutation(
            "the new one is there before the old one goes",
            ARTIFACT,
            "    if _exchange(new, path):",
            "    shutil.rmtree(path)\n    os.rename(new, path)\n    if True:",
            "test_kill_at_any_point_leaves_the_old_or_the_new_whole",
        ),
        Mutation(
            "what was not finished goes",
            ARTIFACT,
            "        shutil.rmtree(aside, ignore_errors=True)",
            "        pass",
            "test_a_failing_block_leaves_what_was_there",
        ),
        Mutation(
            "the old one comes back where the new one cannot come",
            ARTIFACT,
            "        os.rename(old, path)\n        raise",
            "        raise",
            "test_a_failing_rename_puts_the_old_folder_back",
        ),
        Mutation(
            "files of others are not lost",
            ARTIFACT,
            "    if others:",
            "    if False:",
            "test_files_that_are_no_part_of_an_artifact_are_never_lost",
        ),
        Mutation(
            "nor those that come meanwhile",
            ARTIFACT,
            "refuse_foreign(path, kind)  # the block may have taken hours",
            "pass",
            "test_a_file_that_comes_while_writing_is_not_lost_either",
        ),
        Mutation(
            "nor the work of another update",
            ARTIFACT,
            "        if replaces is not None:",
            "        if False:",
            "test_an_update_that_another_one_overtook_is_told_and_changes_nothing",
        ),
        Mutation(
            "a full disk leaves no part of a text",
            ARTIFACT,
            "        aside.unlink(missing_ok=True)",
            "        pass",
            "test_text_is_replaced_whole_or_not_at_all",
        ),
    ),
    CACHES: (
        Mutation(
            "checksums",
            REDIS,
            " or checksum != _checksum(query, content):",
            ":",
            "test_wrong_values_are_misses",
        ),
        Mutation(
            "checksums cover the query",
            REDIS,
            "digest_size=_CHECKSUM, key=query)",
            "digest_size=_CHECKSUM)",
            "test_wrong_values_are_misses",
        ),
        Mutation(
            "scores that are no numbers",
            REDIS,
            "if not np.isfinite(logits).all():",
            "if False:",
            "test_scores_that_are_not_finite_are_no_scores",
        ),
        Mutation(
            "the budget of a look-up",
            REDIS,
            "future.result(timeout=self.budget)",
            "future.result()",
            "test_a_slow_server_costs_its_budget_and_is_left_alone_after_some_failures",
        ),
        Mutation(
            "what fails is left alone",
            REDIS,
            "if not queries or not self.breaker.allows():",
            "if not queries:",
            "test_a_slow_server_costs_its_budget_and_is_left_alone_after_some_failures",
        ),
        Mutation("scores of another model", CACHE, "model_version, backend, tok", "backend, tok", STAMP),
        Mutation("scores of another backend", CACHE, "model_version, backend, tok", "model_version, tok", STAMP),
        Mutation("scores of another lexicon", CACHE, ", backend, tokenizer_digest(pairs)]", ", backend]", STAMP),
        Mutation(
            "hot pairs of another model",
            "engine/hot_pairs.py",
            "if stamp is not None and told != stamp.hex():",
            "if False:",
            STAMP,
        ),
        Mutation(
            "scores of shorter texts",
            "serving/caching.py",
            "if caches is None or not len(work) or work.max_tokens is not None:",
            "if caches is None or not len(work):",
            "test_scores_of_cut_texts_are_not_those_of_whole_ones",
        ),
    ),
    # --- process and machine ------------------------------------------------------------------
    "SIGTERM idle": (
        Mutation(
            "readiness is off at once",
            APP,
            '        if self.draining:\n            return "draining"\n',
            "",
            "test_draining_tells_balancers_and_goes_on_answering",
        ),
        Mutation(
            "connections are not kept",
            APP,
            "if close or self.draining:",
            "if close:",
            "test_draining_tells_balancers_and_goes_on_answering",
        ),
        Mutation("it goes on for a while", RUN, "loop.call_later(delay, close, server)", "close(server)", SIGTERM),
        Mutation(
            "it is ours to answer",
            RUN,
            "loop.add_signal_handler(signal.SIGTERM, on_signal, app.config.drain_delay)",
            "pass",
            SIGTERM,
        ),
        Mutation(
            "who has begun to ask is answered",
            PROTOCOL,
            "self._later(_GRACE_SECONDS, super().shutdown)",
            "super().shutdown()",
            "test_a_connection_that_has_not_asked_yet_is_answered_when_the_server_leaves",
        ),
        Mutation(
            "the second one ends it",
            RUN,
            "server.should_exit = server.force_exit = True",
            "pass",
            "test_a_second_sigterm_ends_it_at_once",
        ),
    ),
    "requests still under way": (
        Mutation(
            "the end of the time to drain",
            RUN,
            '"timeout_graceful_shutdown": config.drain_timeout,',
            "",
            f"{UNDER_WAY}[the_end_of_its_time]",
        ),
        Mutation(
            "they get an answer",
            APP,
            "except asyncio.CancelledError:\n            # The server leaves",
            f"{NEVER}:\n            # The server leaves",
            UNDER_WAY,
        ),
        Mutation(
            "when to come again",
            APP,
            "isinstance(error, (Refused, Closed)) else None",
            "isinstance(error, Refused) else None",
            UNDER_WAY,
        ),
        Mutation(
            "they are not taken for clients that have left",
            APP,
            "if left and not own.uncancel():",
            "if True:",
            UNDER_WAY,
        ),
    ),
    "kill -9 of a worker": (
        Mutation(
            "the port is free again",
            RUN,
            "found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)",
            "pass",
            "test_killed_without_warning_it_starts_again_on_the_same_port",
        ),
        Mutation(
            "a worker is started again",
            RUN,
            "            for place in lost:\n",
            "            for place in ():\n",
            "test_workers_share_a_port_and_a_killed_one_comes_back",
        ),
    ),
    "a worker that keeps dying": (
        Mutation(
            "it rests",
            RUN,
            "pause = self._rest.after(len(failed), now) if failed else 0.0",
            "pause = 0.0",
            "test_workers_that_keep_dying_are_started_again_later_and_later_while_the_others_answer",
        ),
    ),
    "a scoring thread hangs or fails": (
        Mutation(
            "a batch that never ends",
            QUEUE,
            "if beat is not None and now - beat > seconds:",
            "if False:",
            "test_a_batch_that_never_ends_is_noticed",
        ),
        Mutation(
            "a thread that is dead",
            QUEUE,
            "if not thread.is_alive() and not self._closed:",
            "if False:",
            "test_a_scoring_thread_that_has_died_is_noticed",
        ),
        Mutation(
            "a batch that takes a while is no reason",
            APP,
            "_STALLED = 60.0\n",
            "_STALLED = 1.0\n",
            "test_health_goes_on_while_one_batch_takes_long",
        ),
        Mutation(
            "liveness says so",
            APP,
            'reason = self.queue.stalled(_STALLED)\n        return _state(reason, "live")',
            'return _state(None, "live")',
            "test_a_batch_that_never_ends_turns_liveness_and_readiness_off",
        ),
        Mutation(
            "an error in a batch is that of one request",
            QUEUE,
            "                for part in batch:\n                    self._compute_alone(part)",
            "                with self._ready:\n"
            "                    for part in batch:\n"
            "                        self._finish(part[0], error)",
            "test_an_error_fails_its_own_request_and_no_other",
        ),
        Mutation(
            "an error before a batch ends no thread",
            QUEUE,
            "except BaseException as error:  # a thread that dies",
            f"{NEVER} as error:  # a thread that dies",
            "test_texts_that_cannot_be_tokenized_fail_their_own_request_and_end_no_thread",
        ),
    ),
    "no free descriptors": (
        Mutation(
            "it is told",
            RUN,
            'if isinstance(error, OSError) and "socket" in context:',
            "if False:",
            "test_no_free_descriptor_refuses_what_is_new_and_recovers",
        ),
        Mutation(
            "once a second",
            RUN,
            "if loop.time() - told < 1.0:",
            "if False:",
            "test_no_free_descriptor_refuses_what_is_new_and_recovers",
        ),
    ),
    "too much memory, for a while": (
        Mutation(
            "nothing new is taken on",
            MEMORY,
            "        if self.full:\n",
            "        if False:\n",
            "test_above_its_limit_a_server_takes_on_nothing_new_until_it_is_below_again",
        ),
        Mutation(
            "the size is looked at",
            APP,
            "        self._memory.full = self._memory.exceeded\n",
            "",
            "test_above_its_limit_a_server_takes_on_nothing_new_until_it_is_below_again",
        ),
        Mutation(
            "what is free is given back first",
            APP,
            "            await asyncio.to_thread(give_back)\n",
            "            pass\n",
            "test_above_its_limit_a_server_takes_on_nothing_new_until_it_is_below_again",
        ),
        Mutation(
            "large bodies",
            MEMORY,
            "if (own_bytes() or 0) + _TIMES_BODY * (self._coming + size) > self.limit:",
            "if False:",
            "test_above_its_limit_a_server_takes_on_nothing_new_until_it_is_below_again",
        ),
        Mutation(
            "those that are on their way",
            MEMORY,
            "        self._coming += size\n",
            "        self._coming += 0\n",
            "test_bodies_on_their_way_are_counted_before_they_have_come",
        ),
        Mutation(
            "pages of files do not count",
            MEMORY,
            "return (int(resident) - int(shared)) * _PAGE",
            "return int(resident) * _PAGE",
            "test_files_that_are_mapped_are_no_memory_of_its_own",
        ),
    ),
    "too much memory, for good": (
        Mutation(
            "it leaves",
            APP,
            " and not self.draining and self.leave():\n",
            " and False:\n",
            "test_a_process_that_keeps_too_much_memory_leaves_with_a_code_of_its_own",
        ),
        Mutation(
            "with a code of its own",
            APP,
            "            self.exit_code = EXIT_CODE\n",
            "",
            "test_a_process_that_keeps_too_much_memory_leaves_with_a_code_of_its_own",
        ),
        Mutation(
            "and is replaced",
            APP,
            " and not self.draining and self.leave():\n",
            " and False:\n",
            "test_a_worker_that_keeps_too_much_memory_is_replaced_and_the_others_answer",
        ),
        Mutation(
            "a limit that models alone reach",
            MEMORY,
            "    if own >= limit_mb * 2**20:\n",
            "    if False:\n",
            "test_a_limit_that_is_reached_at_the_start_is_refused",
        ),
    ),
    "a root that is only read": (
        Mutation(
            "no place for what workers tell each other",
            RUN,
            "        with contextlib.suppress(OSError):\n            folder =",
            "        with contextlib.suppress(ZeroDivisionError):\n            folder =",
            "test_it_serves_where_nothing_can_be_written_as_a_user_without_a_name",
        ),
        Mutation(
            "doctor goes on where a library does not",
            "doctor.py",
            "except (OSError, ImportError) as error:  # a library",
            f"{NEVER} as error:  # a library",
            "test_what_is_wrong_with_a_machine_is_told_where_nothing_can_be_written",
        ),
    ),
    "metrics are asked of one of several workers": (
        Mutation(
            "those of the others are asked for",
            "serving/peers.py",
            "if path != self._own)",
            "if False)",
            "test_metrics_are_those_of_all_workers_whoever_is_asked",
        ),
        Mutation(
            "one that hangs is not waited for",
            "serving/peers.py",
            "async with asyncio.timeout(_PATIENCE):",
            "async with asyncio.timeout(None):",
            "test_metrics_are_those_of_all_workers_whoever_is_asked",
        ),
    ),
    "no network, no HOME": (
        Mutation(
            "a full disk behind what is said at the start",
            RUN,
            "with contextlib.suppress(OSError, ValueError):  # nobody reads it",
            "with contextlib.suppress(ZeroDivisionError):  # nobody reads it",
            "test_it_serves_in_bare_and_hostile_surroundings",
        ),
        Mutation(
            "a full disk behind the log at the end",
            TELEMETRY,
            "        except (OSError, ValueError):\n            _let_go(self._stream)",
            "        except (OSError, ValueError):\n            pass",
            "test_it_serves_in_bare_and_hostile_surroundings",
        ),
    ),
    "a folder is replaced while it is read": (
        Mutation(
            "a folder that is replaced while it is read is read again",
            REGISTRY,
            "            if self.stamp() == before:\n                return found",
            "            if True:\n                return found",
            "test_a_folder_that_is_replaced_while_it_is_read_never_gives_parts_of_two",
            (Edit(ARTIFACT, "if identity(path) != before:", "if False:"),),
        ),
    ),
    "a file that the server maps is cut": (
        Mutation(
            "it is asked for its length before it is read",
            REGISTRY,
            "                if file.cut:\n",
            "                if False:\n",
            "test_a_file_that_is_cut_while_it_is_served_ends_no_process_and_a_whole_one_is_taken",
        ),
        Mutation(
            "before each request",
            REGISTRY,
            "        if self.mapped.damaged is not None:\n            # Anyone",
            "        if False:\n            # Anyone",
            "test_a_file_that_is_cut_while_it_is_served_ends_no_process_and_a_whole_one_is_taken",
        ),
        Mutation(
            "before each batch",
            QUEUE,
            "        _check(job for job, _ in batch)\n",
            "",
            "test_a_file_that_is_cut_while_requests_wait_is_not_read_for_them",
        ),
        Mutation(
            "before items are looked up",
            QUEUE,
            "        _check((job,))\n",
            "",
            "test_a_file_that_is_cut_while_requests_wait_is_not_read_for_them",
        ),
        Mutation(
            "readiness says so",
            APP,
            "        if damaged is not None:\n",
            "        if False:\n",
            "test_a_file_that_is_cut_while_it_is_served_ends_no_process_and_a_whole_one_is_taken",
        ),
        Mutation(
            "what was written is looked at",
            REGISTRY,
            " or self._served[name].mapped.state != self._written[name]",
            "",
            "test_what_is_written_over_a_served_file_is_refused_until_it_is_whole",
        ),
        Mutation(
            "and what was written while it was opened",
            REGISTRY,
            "{each.name: each.mapped.opened for each in served}",
            "{each.name: each.mapped.state for each in served}",
            "test_what_is_written_while_a_model_is_opened_is_looked_at_afterwards",
        ),
        Mutation(
            "and refused where it is not what it was",
            REGISTRY,
            "                if written and isinstance(error, ArtifactError):  # what",
            "                if False:  # what",
            "test_what_is_written_over_a_served_file_is_refused_until_it_is_whole",
        ),
        Mutation(
            "of item states too",
            INDEX,
            "return [self._arrays.file, *([] if self.states is None else [self.states.file])]",
            "return [self._arrays.file]",
            "test_every_file_that_a_served_model_maps_is_looked_at",
        ),
        Mutation(
            "of hot pairs too",
            REGISTRY,
            "files += [] if self.hot is None else [self.hot.file]",
            "pass",
            "test_every_file_that_a_served_model_maps_is_looked_at",
        ),
        Mutation(
            "of behavior too",
            REGISTRY,
            "files += [] if self.neighbors is None else [self.neighbors.scorer.behavior.file]",
            "pass",
            "test_every_file_that_a_served_model_maps_is_looked_at",
        ),
    ),
    "a worker that a cut file has ended": (
        Mutation(
            "how it ended is told",
            RUN,
            '    why = " (most often a file that it maps was cut)" if',
            '    why = "" if',
            "test_a_worker_that_a_cut_file_has_ended_is_told_and_the_next_one_names_the_file",
        ),
    ),
    "something else answers in the place of Redis": (
        Mutation(
            "an answer to something else is none",
            REDIS,
            "if not isinstance(values, list) or len(values) != len(queries):",
            "if False:",
            "test_what_no_redis_would_say_is_a_miss_and_ends_no_thread",
        ),
    ),
    "a worker starts while what stands in the folders is bad": (
        Mutation(
            "a line instead of a trace",
            RUN,
            "except (PertinentError, OSError) as error:  # what stands",
            f"{NEVER} as error:  # what stands",
            "test_a_worker_that_cannot_open_what_stands_there_says_so_in_a_line",
        ),
    ),
    "a worker stands still while all are replaced": (
        Mutation(
            "one that hangs is ended",
            RUN,
            "if time.monotonic() < end:\n                    continue",
            "continue",
            "test_a_worker_that_hangs_is_ended_when_all_are_replaced",
        ),
    ),
    "log pipe full or closed": (
        Mutation(
            "nobody waits for it",
            TELEMETRY,
            "self._lines.put_nowait(msgspec",
            "self._lines.put(msgspec",
            "test_a_full_pipe_holds_up_nobody_and_lost_lines_are_counted",
        ),
        Mutation(
            "lost lines are counted",
            TELEMETRY,
            'self._dropped += 1 + values.get("lines_dropped", 0)',
            "pass",
            "test_a_full_pipe_holds_up_nobody_and_lost_lines_are_counted",
        ),
        Mutation(
            "a closed one ends no thread",
            TELEMETRY,
            "except (OSError, ValueError):  # closed",
            f"{NEVER}:  # closed",
            "test_a_closed_stream_holds_up_nobody",
        ),
        Mutation(
            "leaving does not wait for a pipe",
            TELEMETRY,
            "if self._thread.is_alive():  # nobody reads",
            "if False:  # nobody reads",
            "test_a_log_that_nobody_reads_does_not_hold_up_leaving",
        ),
        Mutation(
            "a pipe that does not wait cuts no line",
            TELEMETRY,
            "if not select.select([], [descriptor], [], _PIPE_SECONDS)[1]:",
            "if True:",
            "test_lines_come_whole_through_a_full_pipe_that_does_not_wait",
        ),
    ),
    "the clock jumps an hour": (
        Mutation(
            "requests have the time of no wall",
            APP,
            "Exchange(scope, receive, _request_id(scope), time.monotonic())",
            "Exchange(scope, receive, _request_id(scope), time.time())",
            "test_a_clock_that_jumps_moves_no_deadline",
        ),
    ),
    # --- access -------------------------------------------------------------------------------
    "no key and an address that others reach": (
        Mutation(
            "the address",
            RUN,
            "if open_to_all and not config.keys and config.keys_file is None and not config.insecure:",
            "if False:",
            "test_what_would_open_the_server_or_crowd_its_cores_is_refused_before_anything_is_opened",
        ),
        Mutation(
            "that of the admin port",
            RUN,
            "hosts = [config.host, *([config.admin_host] if config.admin_port is not None else [])]",
            "hosts = [config.host]",
            "test_what_would_open_the_server_or_crowd_its_cores_is_refused_before_anything_is_opened",
        ),
        Mutation(
            "a file without keys",
            ACCESS,
            "    if not keys:",
            "    if False:",
            "test_a_file_without_keys_is_refused_before_anything_is_opened",
        ),
    ),
    "wrong, missing, misplaced key": (
        Mutation("the key", ACCESS, "if not found or not given:", "if False:", KEYS),
        Mutation(
            "no key is no key, whatever the digests",
            ACCESS,
            "if not found or not given:",
            "if not found:",
            "test_the_digest_of_nothing_lets_nobody_in",
        ),
        Mutation(
            "the scheme",
            ACCESS,
            'return token.strip() if scheme.lower() == b"bearer" else b""',
            "return token.strip()",
            KEYS,
        ),
        Mutation("how to ask", APP, "if found.status == 401:", "if False:", KEYS),
        Mutation(
            "metrics are not for everyone",
            APP,
            '_OPEN = {\n    "health",',
            '_OPEN = {\n    "metrics",\n    "health",',
            KEYS,
        ),
        Mutation(
            "digests are not shown",
            APP,
            'shown = {**self.config.without_secrets(), "keys": self._keys.names}',
            "shown = self.config.without_secrets()",
            KEYS,
            (Edit("serving/config.py", '"keys": sorted(self.keys)', '"keys": self.keys'),),
        ),
    ),
    "a key is replaced": (
        Mutation(
            "without a restart",
            APP,
            "            try:\n                self.reload_keys()\n",
            "            try:\n",
            ROTATION,
        ),
        Mutation("what is no digest is no key", ACCESS, "if not _DIGEST.fullmatch(digest):", "if False:", ROTATION),
        Mutation("a broken file ends nothing", APP, "except ConfigError as error:", f"{NEVER} as error:", ROTATION),
        Mutation(
            "a broken file opens nothing",
            ACCESS,
            "        self._stamp = stamp\n",
            "        self._stamp = stamp\n        self._digests = []\n",
            ROTATION,
        ),
    ),
    "metrics, configuration and page": (
        Mutation(
            "on the admin port only",
            APP,
            "if self.admin_port is not None and entry.serves in _ADMIN and not self._is_admin(scope):",
            "if False:",
            "test_an_admin_port_takes_metrics_and_configuration_off_the_other",
        ),
    ),
    "names from clients as metric labels": (
        Mutation(
            "paths with names in them",
            APP,
            "exchange.route, exchange.shape = first.template, first.shape",
            "exchange.route, exchange.shape = path, first.shape",
            "test_paths_from_clients_never_become_labels",
        ),
        Mutation(
            "unknown paths",
            APP,
            "        if methods is None:\n            raise",
            "        if methods is None:\n            exchange.route = path\n            raise",
            "test_paths_from_clients_never_become_labels",
        ),
        Mutation(
            "queries are not logged unasked",
            APP,
            "if self.config.log_queries:",
            "if True:",
            "test_the_log_has_one_json_line_a_request_without_the_query",
        ),
        Mutation(
            "names of requests",
            APP,
            "if _REQUEST_ID.fullmatch(given) else",
            "if given else",
            "test_a_request_id_is_kept_where_it_is_harmless",
        ),
    ),
    "pages of other sites": (
        Mutation(
            "no header lets them read",
            APP,
            "            *reply.headers,\n",
            '            *reply.headers,\n            (b"access-control-allow-origin", b"*"),\n',
            "test_no_page_of_another_site_may_read_answers",
        ),
        Mutation(
            "only what is listed",
            ACCESS,
            "if origin not in self._allowed:",
            "if False:",
            "test_pages_of_listed_sites_alone_may_ask_and_read",
        ),
        Mutation(
            "no star",
            ACCESS,
            "if not _ORIGIN.fullmatch(origin):",
            "if False:",
            "test_what_is_no_origin_is_refused_at_the_start",
        ),
    ),
    "error pages": (
        Mutation(
            "errors of libraries",
            APP,
            '(Exception, 500, "internal", "the request could not be answered")',
            '(Exception, 500, "internal", None)',
            "test_a_failing_backend_is_a_500_without_details",
        ),
        Mutation(
            "errors of our own",
            APP,
            '(PertinentError, 500, "internal", "the request could not be answered")',
            '(PertinentError, 500, "internal", None)',
            "test_no_words_of_an_error_that_is_ours_reach_the_client",
        ),
        Mutation(
            "the server's name",
            RUN,
            '"server_header": False,',
            '"server_header": True,',
            "test_errors_show_no_versions_paths_or_traces",
        ),
    ),
}

# Faults of the page for which no guard is taken away, and why.
WITHOUT = {
    "ONNX Runtime gets batches of ever other shapes": "its memory is its own: what is measured is that it stays",
    "thread counts, batch mates": "laws of computing: there is no guard to take away",
    "descriptors and memory after all faults": "what is measured is the sum of all others",
}


# --- the copy -------------------------------------------------------------------------------


class Copy:
    """The checkout in a folder of its own, and a Python that imports the package from there and nowhere else.

    An editable installation leads to the checkout by a hook of its environment. Environments of their own do not
    run the hooks of others: this one only has the paths of the libraries.
    """

    def __init__(self, place: Path) -> None:
        self.root, self._scratch = place / "checkout", place / "scratch"
        self._report, self._said = place / "report.xml", place / "said"
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        environment = place / "python"
        venv.EnvBuilder(symlinks=True).create(environment)
        libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        own = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
        (own / "checkout.pth").write_text("\n".join([str(self.root), *libraries]) + "\n", encoding="utf-8")
        self.python = str(environment / "bin" / "python")
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PERTINENT_")}
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH"):
            self.variables.pop(name, None)
        self.variables |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        # Most of the time would go into plugins that nothing here needs, and into the same model again and again.
        self.variables |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TINY_ARTIFACT": str(place / "model")}
        code = "import pertinent; print(pertinent.__file__)"
        done = subprocess.run(
            [self.python, "-c", code], cwd=place, env=self.variables, capture_output=True, text=True, check=False
        )
        if not Path(done.stdout.strip()).is_relative_to(self.root):
            raise SystemExit(f"error: the copy is not what is imported: {done.stdout.strip() or done.stderr[-500:]}")

    @contextlib.contextmanager
    def without(self, mutation: Mutation) -> Iterator[None]:
        """The copy without a guard."""
        before: dict[Path, str] = {}
        try:
            for edit in mutation.edits:
                file = self.root / "pertinent" / edit.file
                text = file.read_text(encoding="utf-8")
                before.setdefault(file, text)
                self._write(file, text.replace(edit.old, edit.new))
            yield
        finally:
            for file, text in before.items():
                self._write(file, text)

    def run(self, nodes: Sequence[str], limit: float, *flags: str) -> Outcome:
        """What pytest says of some tests."""
        self._report.unlink(missing_ok=True)
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
        command += [f"--junitxml={self._report}", f"--basetemp={self._scratch}"]
        started = time.monotonic()
        with self._said.open("wb") as said:
            process = subprocess.Popen(
                [*command, *flags, *nodes],
                cwd=self.root,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            with contextlib.suppress(ProcessLookupError, PermissionError):  # servers that a test has left, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Outcome(*self._outcome(code, limit), round(time.monotonic() - started, 1))

    @property
    def failed(self) -> set[str]:
        """The functions of the tests that failed last."""
        cases = ElementTree.parse(self._report).iter("testcase")
        return {_function(case.get("name", "")) for case in cases if {"failure", "error"} & {each.tag for each in case}}

    @property
    def said(self) -> str:
        """The end of what pytest printed last."""
        return self._said.read_text(encoding="utf-8", errors="replace")[-2_000:]

    def _outcome(self, code: int | None, limit: float) -> tuple[str, str]:
        if code is None:
            return f"{NOTICED}: no end within {limit:.0f} s", ""
        if code < 0:
            return f"{NOTICED}: ended by signal {-code}", ""
        cases = list(ElementTree.parse(self._report).iter("testcase")) if self._report.exists() else []
        for case in cases:
            error = case.find("error")
            if case.find("failure") is not None:
                return NOTICED, case.get("name", "")
            if error is not None and error.get("message", "").startswith("failed on teardown"):
                return f"{NOTICED}: at the end of its tests", case.get("name", "")
        if code:
            return f"{BROKEN}: the tests do not run", ""
        ran = [case for case in cases if case.find("skipped") is None]
        return (NOT_NOTICED if ran else SKIPPED), ""

    def _write(self, file: Path, text: str) -> None:
        file.write_text(text, encoding="utf-8")
        # Python takes what it has compiled for current by second and size.
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()


# --- what is where --------------------------------------------------------------------------


def problems(mutation: Mutation, root: Path = ROOT) -> list[str]:
    """Why a mutation cannot be made in a checkout; empty where it can."""
    found, texts = [], dict[str, str]()
    for edit in mutation.edits:
        text = texts.setdefault(edit.file, (root / "pertinent" / edit.file).read_text(encoding="utf-8"))
        if text.count(edit.old) != 1 or edit.old == edit.new:
            found.append(f"pertinent/{edit.file}: there {text.count(edit.old)} times: {edit.old!r}")
        texts[edit.file] = text.replace(edit.old, edit.new)
    for file, text in texts.items():
        try:
            compile(text, file, "exec")
        except SyntaxError as error:
            found.append(f"pertinent/{file}: not Python any more: {error}")
    return found


def places(mutation: Mutation) -> list[str]:
    """File and line of all that is replaced."""
    found = []
    for edit in mutation.edits:
        text = (ROOT / "pertinent" / edit.file).read_text(encoding="utf-8")
        same = 0  # characters before the two begin to differ
        while edit.new[same : same + 1] == edit.old[same : same + 1] != "":
            same += 1
        found.append(f"pertinent/{edit.file}:{text.count(chr(10), 0, text.index(edit.old) + same) + 1}")
    return found


def nodes_by_name(root: Path = ROOT) -> dict[str, list[str]]:
    """What pytest calls the tests of a checkout, by their names alone and by `test_file.py::` and the name."""
    found: dict[str, list[str]] = {}
    for file in sorted((root / "tests").rglob("test_*.py")):
        within = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if re.match(r"\S", line):
                within = ""
            if match := re.match(r"class (Test\w+)", line):
                within = f"{match[1]}::"
            if match := re.match(r"(?:    )?def (test_\w+)\(", line):
                node = f"{file.relative_to(root).as_posix()}::{within}{match[1]}"
                for name in (match[1], f"{file.name}::{match[1]}"):
                    found.setdefault(name, []).append(node)
    return found


def nodes_of(mutation: Mutation, known: dict[str, list[str]]) -> list[str]:
    """What pytest calls the tests of a mutation. Raises LookupError for one that is nowhere, or in two files."""
    found = []
    for test in mutation.tests.split():
        name, bracket, case = test.partition("[")
        nodes = known.get(name, [])
        if len(nodes) != 1:
            raise LookupError(f"{name}: in {len(nodes)} places")
        found.append(nodes[0] + bracket + case.replace("_", " "))
    return found


def _function(node: str) -> str:
    return node.partition("[")[0].rpartition("::")[2]


# --- all of them ----------------------------------------------------------------------------


def chosen(word: str) -> list[tuple[str, Mutation]]:
    """Faults and mutations with a word in them; all for an empty one."""
    rows = [(fault, mutation) for fault, mutations in TABLE.items() for mutation in mutations]
    return [
        (fault, each)
        for fault, each in rows
        if word.lower() in " ".join([fault, each.guard, each.tests, *(edit.file for edit in each.edits)]).lower()
    ]


def main() -> int:
    """Take away one guard after the other, and say whether it was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", metavar="WORD", help="guards with this word; the others keep their last result"
    )
    parser.add_argument("--list", action="store_true", help="the table, and nothing else")
    parser.add_argument("--passed", action="store_true", help="they have just passed with all guards: begin at once")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for the tests of one guard")
    given = parser.parse_args()
    rows, known = chosen(given.only), nodes_by_name()
    broken = [problem for _, mutation in rows for problem in problems(mutation)]
    if broken:
        print("\n".join(broken), file=sys.stderr)
        return 1
    if given.list:
        for fault, mutation in rows:
            print(f"{fault}: {mutation.guard}\n    {', '.join(places(mutation))}\n    {mutation.tests}")
        return 0
    with tempfile.TemporaryDirectory(prefix="guards-") as place:
        return judge(given, rows, known, Copy(Path(place)))


def judge(given: argparse.Namespace, rows: list[tuple[str, Mutation]], known: dict[str, list[str]], copy: Copy) -> int:
    """Run the tests with all guards and without each, and say by the exit code whether all were noticed."""
    tests = list(dict.fromkeys(node for _, mutation in rows for node in nodes_of(mutation, known)))
    if given.passed:
        copy.run(known["test_the_walk_agrees_with_the_onnx_package"], BASELINE_LIMIT)  # makes the model of the others
    elif not passes(copy, tests):
        print(f"{copy.said}\nerror: they do not pass with all guards in place", file=sys.stderr)
        return 1
    results, before = list[dict[str, Any]](), ""
    for number, (fault, mutation) in enumerate(rows, start=1):
        if fault != before:
            print(fault, flush=True)
            before = fault
        with copy.without(mutation):
            outcome = copy.run(nodes_of(mutation, known), given.limit, "-x")
        where = places(mutation)
        line = f"  {number:3} of {len(rows)}  {outcome.said:12} {outcome.seconds:6.1f} s  {mutation.guard}"
        print(f"{line}  ({', '.join(where)})", flush=True)
        if not outcome.held:
            print(copy.said, file=sys.stderr, flush=True)
        told = {"fault": fault, "guard": mutation.guard, "places": where, "tests": mutation.tests.split()}
        results.append({**told, **outcome._asdict(), "held": outcome.held})
        keep(results)
    lost = [result for result in results if not result["held"]]
    print(f"\n{len(results)} guards taken away, {len(lost)} not noticed")
    for result in lost:
        print(f"{result['said']}: {result['fault']}: {result['guard']} ({', '.join(result['places'])})")
    return 1 if lost else 0


def passes(copy: Copy, tests: Sequence[str]) -> bool:
    """Whether tests pass with all guards in place; what fails is tried once more, as the machine may have been busy."""
    print(f"{len(tests)} tests with all guards", flush=True)
    outcome = copy.run(tests, BASELINE_LIMIT)
    if outcome.failed:
        failed = copy.failed
        print(f"once more: {', '.join(sorted(failed))}", flush=True)
        outcome = copy.run([node for node in tests if _function(node) in failed], BASELINE_LIMIT)
    print(f"{outcome.seconds:.0f} s\n", flush=True)
    return outcome.said in (NOT_NOTICED, SKIPPED)


def keep(results: list[dict[str, Any]]) -> None:
    """Write results; guards that were not run now keep what was written of them before."""
    from serving_process import machine, write

    script = Path(__file__)
    before = json.loads(script.with_suffix(".json").read_text()) if script.with_suffix(".json").exists() else {}
    known = {(each["fault"], each["guard"]): each for each in [*before.get("results", []), *results]}
    rows = [(fault, mutation.guard) for fault, mutation in chosen("")]
    kept = [known[row] for row in rows if row in known]
    found = {
        "command": "python benchmarks/guard_mutations.py",
        "machine": machine(),
        "guards": len(rows),
        "noticed": sum(each["said"].startswith(NOTICED) for each in kept),
        "not_noticed": [f"{each['fault']}: {each['guard']}" for each in kept if not each["held"]],
        "skipped": [f"{each['fault']}: {each['guard']}" for each in kept if each["said"] == SKIPPED],
        "not_run": [f"{fault}: {guard}" for fault, guard in rows if (fault, guard) not in known],
        "minutes": round(sum(each["seconds"] for each in kept) / 60, 1),
        "results": kept,
    }
    write(__file__, found)


if __name__ == "__main__":
    raise SystemExit(main())
