"""What a concept is (`ConceptBank`) and the ways to find one."""

from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.concepts.contrast import collect, difference_of_means, effects, group_auc, separating_latents
from interptrain.concepts.saelens import from_saelens, from_several_saes, load_sae_readout

__all__ = [
    "ConceptBank",
    "Readout",
    "collect",
    "difference_of_means",
    "effects",
    "from_saelens",
    "from_several_saes",
    "group_auc",
    "load_sae_readout",
    "separating_latents",
]
