"""The sample data that ships with the source, under ``examples/data``."""

from __future__ import annotations

from pathlib import Path

from pertinent.data.readers import read_items, read_judgments
from pertinent.errors import DataError
from pertinent.records import Item, Judgment

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "data"
JUDGED = ("esci", "icecat")
SAMPLES = (*JUDGED, "fashion", "oa_mine", "pricerunner", "queryner", "wands")


def sample_path(name: str) -> Path:
    """The folder of a sample: ``esci`` and ``icecat`` are judged, the others have text to learn from.

    >>> sorted(file.name for file in sample_path("icecat").glob("*.parquet"))
    ['items.parquet', 'judgments.parquet']
    """
    if name not in SAMPLES:
        raise DataError(f"there is no sample {name!r}", fix=f"allowed: {', '.join(SAMPLES)}")
    if not (FOLDER / name).is_dir():
        raise DataError(
            f"the sample {name!r} is not here: samples come with the source, not with the installed package",
            path=FOLDER / name,
            fix="run this in a clone of the repository",
        )
    return FOLDER / name


def read_sample(name: str) -> tuple[list[Item], list[Judgment]]:
    """Items and judgments of a judged sample, ``esci`` or ``icecat``.

    >>> items, judgments = read_sample("icecat")
    >>> len(items), len(judgments)
    (19406, 2589)
    """
    folder = sample_path(name)
    if name not in JUDGED:
        raise DataError(f"the sample {name!r} has no judgments", fix=f"with judgments: {', '.join(JUDGED)}")
    items = read_items(folder / "items.parquet")
    return items, read_judgments(folder / "judgments.parquet", items)
