"""Product-search relevance that a shop can own.

>>> from pertinent import normalize
>>> normalize("Wireless  EARBUDS")
'wireless earbuds'

Names are resolved on first use: importing pertinent loads neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pertinent.engine.scorer import Scorer
    from pertinent.errors import PertinentError
    from pertinent.records import Item, Judgment, Pair, Scored
    from pertinent.text import normalize

__version__ = "0.1.0"

_EXPORTS = {
    "Item": "pertinent.records",
    "Judgment": "pertinent.records",
    "Pair": "pertinent.records",
    "PertinentError": "pertinent.errors",
    "Scored": "pertinent.records",
    "Scorer": "pertinent.engine.scorer",
    "normalize": "pertinent.text",
}
__all__ = ["Item", "Judgment", "Pair", "PertinentError", "Scored", "Scorer", "__version__", "normalize"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pertinent' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
