"""Where a model's parameters meet the residual stream."""

from interptrain.sites.families import register_family
from interptrain.sites.family import Family, Half
from interptrain.sites.find import find_sites
from interptrain.sites.hooks import HookPoint
from interptrain.sites.norm import Norm
from interptrain.sites.site import LeftOut, Site, Sites

__all__ = ["Family", "Half", "HookPoint", "LeftOut", "Norm", "Site", "Sites", "find_sites", "register_family"]
