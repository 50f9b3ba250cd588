"""What a word of a query or title can be: the six term classes, and how other tag sets map to them.

The classes are those of ei-SRC, section 5. Ids index the model's term-class embedding; 0 is also
padding and special tokens.
"""

from __future__ import annotations

from typing import NamedTuple

TERM_CLASSES = ("none", "material", "function", "usage", "specification", "style", "core")
CLASS_IDS = {name: number for number, name in enumerate(TERM_CLASSES)}


class TermSpan(NamedTuple):
    """A term of a text: ``text == normalized[start:end]``.

    ``start`` and ``end`` count characters of the normalized text (``pertinent.text.normalize``).
    ``term_class`` is a name of ``TERM_CLASSES``, never ``none``: words without a class have no
    span. ``source`` is ``gazetteer``, ``pattern`` or ``classifier``. Spans of a text do not
    overlap and come in order.
    """

    start: int
    end: int
    term_class: str
    text: str
    source: str

    @property
    def class_id(self) -> int:
        """The class as a number, 1 to 6.

        >>> TermSpan(0, 6, "material", "cotton", "gazetteer").class_id
        1
        """
        return CLASS_IDS[self.term_class]


# QueryNER's 17 span types (Palen-Michel et al. 2024).
QUERYNER_CLASSES = {
    "core_product_type": "core",
    "product_name": "core",  # "macbook pro": what the thing is, by its own name
    "modifier": "function",  # wireless, portable, organic: nearest of the six
    "creator": "none",  # brands are names, not classes of meaning
    "department": "usage",
    "occasion": "usage",
    "content": "style",  # the motif: "star wars" in "star wars costume"
    "color": "style",
    "shape": "style",
    "time": "style",  # 80s, medieval
    "material": "material",
    "UoM": "specification",
    "quantity": "specification",
    "condition": "specification",
    "product_number": "specification",
    "origin": "specification",
    "price": "none",
}

# OA-Mine's attribute names (Zhang et al. 2022), all ten categories.
OA_MINE_CLASSES = {
    "brand": "none",
    "model_name": "none",  # a name, as a brand is
    "item_form": "core",  # conditioner, tea bags, ground coffee
    "sub_brand": "core",  # in this copy: cereal, granola, oatmeal
    "cereal_type": "core",
    "shoe_type": "core",
    "supplement_type": "core",
    "tea_variety": "core",
    "specific_uses": "core",  # stain remover, multi-purpose cleaner
    "material": "material",
    "specialty": "function",
    "reusability": "function",
    "benefit": "function",
    "health_benefit": "function",
    "mask_type": "function",
    "operation_mode": "function",
    "power_source": "function",
    "closure": "function",
    "closure_type": "function",
    "diet": "function",
    "waterproof": "function",
    "age": "usage",
    "age_range": "usage",
    "animal": "usage",
    "administration_type": "usage",
    "gender": "usage",
    "hair_type": "usage",
    "skin_type": "usage",
    "machine_type": "usage",
    "sport": "usage",
    "color": "style",
    "flavor": "style",
    "scent": "style",
    "roast_type": "style",
    "caffeine_content": "specification",
    "cap": "specification",
    "certified_grade": "specification",
    "container": "specification",
    "container_type": "specification",
    "country": "specification",
    "dosage": "specification",
    "firmness": "specification",
    "layer": "specification",
    "load_size": "specification",
    "net_content": "specification",
    "pack_size": "specification",
    "package_type": "specification",
    "protection_level": "specification",
    "size": "specification",
    "supply_size": "specification",
    "volume": "specification",
}
