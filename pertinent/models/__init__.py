"""The table of networks by name; each is loaded only when it is used."""

MODELS = {
    "ei_src": ("pertinent.models.ei_src:EiSRC", "pertinent.models.ei_src:EiSRCConfig"),
    "sbert": ("pertinent.models.towers:SBERT", "pertinent.models.towers:SBERTConfig"),
}
