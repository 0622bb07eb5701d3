"""What a concept is (`ConceptBank`) and the ways to find one."""

from interptrain.concepts.bank import ConceptBank, Readout

__all__ = ["ConceptBank", "Readout"]
