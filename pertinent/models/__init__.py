"""The table of networks by name; each is loaded only when it is used."""

MODELS = {
    "barl_ase": ("pertinent.models.barl_ase:BarlASe", "pertinent.models.barl_ase:BarlASeConfig"),
    "bert2dnn": ("pertinent.models.bert2dnn:BERT2DNN", "pertinent.models.bert2dnn:BERT2DNNConfig"),
    "dssm": ("pertinent.models.dssm:DSSM", "pertinent.models.dssm:DSSMConfig"),
    "ei_src": ("pertinent.models.ei_src:EiSRC", "pertinent.models.ei_src:EiSRCConfig"),
    "interactor": ("pertinent.models.interactor:Interactor", "pertinent.models.interactor:InteractorConfig"),
    "repr_bert": ("pertinent.models.repr_bert:ReprBERT", "pertinent.models.repr_bert:ReprBERTConfig"),
    "sbert": ("pertinent.models.towers:SBERT", "pertinent.models.towers:SBERTConfig"),
}
