"""docs/logs.md has a row for each setting of reading, sessions and checks, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pertinent.mining.checks import CHECKS, CheckConfig
from pertinent.mining.formats import GA4_EVENTS, SEGMENT_EVENTS, SNOWPLOW_TYPES, word
from pertinent.mining.sessions import SessionConfig
from pertinent.mining.sources import LogConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")


def told(head):
    """Names and defaults in the table whose head begins with a text."""
    below = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", below, flags=re.MULTILINE))


def value_of(name, text):
    """A default as written: YAML, but for what is a pattern or holds characters of YAML."""
    if name == "query_pattern":
        return text
    if name == "bot_agents":
        return text.strip("[]").split(", ")
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (LogConfig, ["setting"]),
        (SessionConfig, ["setting of `sessions`"]),
        (CheckConfig, ["check", "threshold"]),
    ],
)
def test_settings_and_defaults_are_those_of_the_code(config, heads):
    rows = {name: text for head in heads for name, text in told(head).items()}
    defaults = {name: field.default for name, field in config.model_fields.items()}
    assert {name: value_of(name, text) for name, text in rows.items()} == defaults


def test_every_check_is_told():
    assert list(told("check")) == list(CHECKS)


@pytest.mark.parametrize(
    ("head", "meanings"),
    [("GA4 event", GA4_EVENTS), ("Segment event", SEGMENT_EVENTS), ("Snowplow type", SNOWPLOW_TYPES)],
)
def test_events_and_their_levels_are_those_of_the_code(head, meanings):
    below = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    rows = {}
    for line in below:
        events, level = line.strip("| ").split(" | ")
        meaning = "search" if level == "a search" else re.findall(r"`(\w+)`", level)[0]
        rows |= {word(event): meaning for event in re.findall(r"`([^`]+)`", events)}
    assert rows == meanings
