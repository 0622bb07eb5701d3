"""Which examples of a corpus would teach a model what a few others teach: the likeness of their gradients."""

from interptrain.similarity.demands import ConceptDemands
from interptrain.similarity.layers import linear_layers
from interptrain.similarity.likeness import Likeness, cosine, whitened
from interptrain.similarity.moments import Scales, SecondMoments
from interptrain.similarity.passes import Reader, read_gradients
from interptrain.similarity.search import features, similar
from interptrain.similarity.signs import Folding, Signs
from interptrain.similarity.sketch import Sketch
from interptrain.similarity.top import Reservoir, Top, rank_correlation

__all__ = [
    "ConceptDemands",
    "Folding",
    "Likeness",
    "Reader",
    "Reservoir",
    "Scales",
    "SecondMoments",
    "Signs",
    "Sketch",
    "Top",
    "cosine",
    "features",
    "linear_layers",
    "rank_correlation",
    "read_gradients",
    "similar",
    "whitened",
]
