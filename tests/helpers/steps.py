"""What an optimizer's steps really were, measured beside the steerer and without its code."""

import pytorch_lightning as pl
import torch


class RealisedSteps(pl.Callback):
    """Records `D dW` of every step and site in float64; of a LoRA pair, of the product `s B A`.

    Put before the steering callback it sees what the optimizer did, put after it what was made of it.

    Args:
        sites: where.
        directions: unit rows in the stream's coordinates.
    """

    def __init__(self, sites, directions):
        self.sites, self.directions = list(sites), directions
        self.steps = []  # one entry a step: {site name: D dW}
        self._before = {}

    def on_fit_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            self.attach(optimizer)

    def attach(self, optimizer):
        optimizer.register_step_pre_hook(lambda *_: self._before.update({s.name: self._weight(s) for s in self.sites}))
        optimizer.register_step_post_hook(lambda *_: self.steps.append({s.name: self._change(s) for s in self.sites}))

    def _weight(self, site):
        own = site.parameter.detach().double().clone()
        if site.partner is None:
            return own
        other = site.partner.weight.detach().double()
        B, A = (own, other) if site.role == "writer" else (other, own)
        if site.experts == 1:
            return site.scaling * B @ A
        ranks = (-1, site.experts)  # PEFT: B has an expert's columns apart from one another, A its rows together
        return site.scaling * torch.einsum("ore,eri->eoi", B.unflatten(1, ranks), A.unflatten(0, ranks[::-1]))

    def _change(self, site):
        change = self._weight(site) - self._before[site.name]
        axis = site.axis + (change.ndim - site.parameter.ndim)
        rows = site.directions(self.directions).double()
        return torch.tensordot(rows, change, ([1], [axis])).reshape(len(rows), -1)


def relative_errors(before, after, gains):
    """For each step, `||D dW' - diag(gain) D dW|| / ||D dW||` over all sites together."""
    gains = torch.as_tensor(gains, dtype=torch.float64).reshape(-1, 1)
    errors = []
    for old, new in zip(before.steps, after.steps, strict=True):
        missed = sum(float((new[name] - gains * old[name]).square().sum()) for name in old)
        errors.append((missed / sum(float(each.square().sum()) for each in old.values())) ** 0.5)
    return errors
