"""Dictionary: which of all latents the steps teach, whether or not a concept was asked about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interptrain import processes
from interptrain.concepts.bank import ConceptBank

FLIPS = 64  # null draws
CHUNK = 8192  # latents whose energy is taken at a time
SWEEPS = 1  # times that every pick is looked at again
TOLERANCE = 1e-5  # of the target's length: what explains less is not picked
OUTSIDE = 1e-3  # of a direction's square: with less outside the span of the other picks it is one of them
LABEL_LENGTH = 200  # characters of a label that a row shows


class DictionaryMeter:
    """Says which latents of each hook's whole dictionary the activation gradients `g_t = dL/dh_t` of a window teach.

        total = sum_t g_t        second = sum_t g_t g_t^T        flipped = sum_t eps_t g_t,   eps_t = +-1 at random

    Nothing else is kept between reads: what a window costs does not depend on how many latents there are. A backward
    pass that overflowed is left out. A window is one loss scale: passes that were scaled otherwise weigh otherwise.
    Of several processes each adds its own tokens, with signs of its own.

    Args:
        bank: its read-outs are the dictionaries; hooks without one, or without an alive latent, are not read.
        count: latents to list.
        seed: of the sign flips; the same gradients give the same reading.

    Raises:
        ValueError: `count` is less than 1.

    Example:
        >>> from dataclasses import replace
        >>> from interptrain.concepts.bank import Readout
        >>> dictionary = Readout({}, {"W_dec": 3 * torch.eye(4)}, alive=torch.ones(4, dtype=torch.bool))
        >>> hook = "blocks.1.hook_resid_post"
        >>> bank = ConceptBank.from_directions({"pirate": torch.eye(4)[2]}, hook=hook, source={"latent": 2})
        >>> meter = DictionaryMeter(replace(bank, readouts={hook: dictionary}), count=2)
        >>> meter.add(hook, torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, -3.0], [0.0, 0.0]]))
        >>> for row in meter.read()[hook].rows(bank, hook, {1: "weather"}):
        ...     print(row["latent"], row["label"], row["concept"], row["coefficient"])
        2  pirate 5.0
        1 weather  -2.0
    """

    def __init__(self, bank: ConceptBank, *, count: int = 10, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, found {count}")
        self.active = True
        self._bank, self._count, self._seed = bank, count, seed
        self._alive = {
            hook: bank.readouts[hook].alive.nonzero()[:, 0].cpu()
            for hook in bank.hook_points
            if hook in bank.readouts and bank.readouts[hook].alive.any()
        }
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}
        self._tallies: dict[str, _Tally] = {}

    @property
    def hooks(self) -> tuple[str, ...]:
        """Hook points that have a dictionary."""
        return tuple(self._alive)

    def add(self, hook: str, columns: Float[Tensor, "d_model token"]) -> None:
        """Take one backward pass's gradients; tokens that do not count are zero, other hooks are passed over."""
        if hook not in self._alive:
            return
        if hook not in self._tallies:
            self._tallies[hook] = _Tally.zeros(len(columns), self._seed + processes.rank(), columns.device)
        with torch.no_grad(), torch.autocast(columns.device.type, enabled=False):
            self._tallies[hook].add(columns.float())

    def read(
        self, loss_scale: Float[Tensor, ""] | float = 1.0, *, device: torch.device | None = None
    ) -> dict[str, Discovery] | None:
        """The reading since the last one at each hook, with loss scaling undone; None if no gradient came by.

        Of several processes all have to ask; it takes one collective.

        Args:
            loss_scale: of the window.
            device: where to read if no gradient came by here but in another process.
        """
        tallies, self._tallies = self._tallies, {}
        if processes.count() > 1:
            tallies = self._over_processes(tallies, device or torch.device("cpu"))
        found = {}
        for hook, tally in tallies.items():
            with torch.no_grad(), torch.autocast(tally.total.device.type, enabled=False):
                rows = self._dictionary(hook, tally.total.device)
                found[hook] = tally.reading(*rows, self._count, loss_scale * processes.count())
        return found or None

    def _over_processes(self, tallies: Mapping[str, _Tally], device: torch.device) -> dict[str, _Tally]:
        """Every process's tallies together, in the order of the hooks; those without a gradient are left out."""
        summed = {
            hook: tallies[hook] if hook in tallies else _Tally.zeros(self._bank.d_model, 0, device)
            for hook in self._alive
        }
        processes.sum_over_processes_(
            [each for t in summed.values() for each in (t.total, t.second, t.flipped, t.tokens)]
        )
        return {hook: tally for hook, tally in summed.items() if hook in tallies or tally.tokens > 0}

    def held_bytes(self) -> int:
        """Bytes kept on the devices while it measures: the alive latents' directions and the sums."""
        width = self._bank.d_model
        return sum(4 * width * (len(alive) + width + FLIPS + 1) + 8 * len(alive) for alive in self._alive.values())

    def _dictionary(
        self, hook: str, device: torch.device
    ) -> tuple[Float[Tensor, "alive d_model"], Int[Tensor, "alive"]]:
        if hook not in self._rows or self._rows[hook][0].device != device:
            alive = self._alive[hook]
            self._rows[hook] = (self._bank.readouts[hook].directions.cpu()[alive].to(device), alive.to(device))
        return self._rows[hook]


@dataclass(frozen=True, eq=False)
class Discovery:
    r"""The demand `v = -sum_t g_t` at one hook as a few latents, `v ~ sum_k c_k d_k`.

        signed_k = d_k . v       z_k = signed_k / sqrt(d_k^T S d_k)       share_k = d_k^T S d_k / tr S

    with `S = sum_t g_t g_t^T`. The denominator of `z` is the standard deviation of `signed` under random signs of
    the tokens. It is far from 0 for most latents as soon as the data ask for anything, since they overlap, and a pick
    was the best of them all: `z` orders the list and is no test of it, which is `null_top`. Where the tokens of one
    text pull together, both are generous.

    Args:
        latents: by their number in the dictionary; -1 where nothing was left to pick.
        coefficients: `c`, by least squares over all the picks; positive where the data ask for more.
        signed: demand along each latent alone, in units of loss per unit of activation.
        z: of `signed`, against the sign flips.
        share: of the gradients' energy that lies along the latent.
        explained: share of `||v||^2` explained by the picks so far.
        top: the largest `|d . v|` over all alive latents.
        null_top: the same of the demand with random signs of the tokens.
        null_explained: what as many picks explain of it.
        tokens: how many had a gradient.
    """

    latents: Int[Tensor, "pick"]
    coefficients: Float[Tensor, "pick"]
    signed: Float[Tensor, "pick"]
    z: Float[Tensor, "pick"]
    share: Float[Tensor, "pick"]
    explained: Float[Tensor, "pick"]
    top: Float[Tensor, ""]
    null_top: Float[Tensor, "flip"]
    null_explained: Float[Tensor, "flip pick"]
    tokens: Int[Tensor, ""]

    columns: ClassVar[tuple[str, ...]] = (
        "rank", "latent", "label", "concept", "coefficient", "signed", "z", "share", "explained", "explained_null",
    )  # fmt: skip

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """The figures to log: the strongest demand along one latent, and what all picks explain, each with its null.

        z = (value - mean(null)) / std(null)
        """
        found: dict[str, Tensor] = {}
        for name, value, null in (
            ("/top", self.top, self.null_top),
            ("/explained", self.explained[-1], self.null_explained[:, -1]),
        ):
            mean, spread = null.mean(), null.std()
            found |= {name: value, f"{name}/null": mean, f"{name}/z": (value - mean) / spread}
        return found

    def rows(self, bank: ConceptBank, hook: str, labels: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """A table for people, as JSON takes it, by one transfer from the device; `columns` names its columns.

        `concept` names the bank's concepts that have the latent, and is empty where nobody asked about it; what is
        not finite is None. Labels are cut to one printable line; whoever shows them as HTML escapes them.

        Args:
            bank: the concepts.
            hook: where the reading was taken.
            labels: what each latent is about, for instance from `read_labels`.
        """
        null = self.null_explained.mean(0)
        figures = [self.coefficients, self.signed, self.z, self.share, self.explained, null]
        concepts = _concepts_of(bank, hook)
        rows = []
        for rank, (number, *values) in enumerate(torch.stack([self.latents.float(), *figures]).T.tolist(), start=1):
            latent = int(number)
            if latent < 0:
                break
            named = (rank, latent, _one_line((labels or {}).get(latent, "")), ", ".join(concepts.get(latent, ())))
            shown = [value if abs(value) < float("inf") else None for value in values]
            rows.append(dict(zip(self.columns, (*named, *shown), strict=True)))
        return rows


@dataclass
class _Tally:
    total: Float[Tensor, "d_model"]
    second: Float[Tensor, "d_model d_model"]
    flipped: Float[Tensor, "d_model flip"]
    tokens: Int[Tensor, ""]
    random: torch.Generator

    @classmethod
    def zeros(cls, width: int, seed: int, device: torch.device) -> _Tally:
        total, second, flipped = (
            torch.zeros(shape, device=device) for shape in ((width,), (width, width), (width, FLIPS))
        )
        tokens = torch.zeros((), dtype=torch.long, device=device)
        return cls(total, second, flipped, tokens, torch.Generator(device).manual_seed(seed))

    def add(self, columns: Float[Tensor, "d_model token"]) -> None:
        signs = torch.randint(0, 2, (columns.shape[1], FLIPS), generator=self.random, device=columns.device) * 2.0 - 1
        second = columns @ columns.T
        finite = second.diagonal().sum().isfinite()
        self.second += torch.where(finite, second, 0.0)
        self.total += torch.where(finite, columns.sum(-1), 0.0)
        self.flipped += torch.where(finite, columns @ signs, 0.0)
        self.tokens += torch.where(finite, (columns != 0).any(0).sum(), 0)

    def reading(
        self,
        directions: Float[Tensor, "alive d_model"],
        numbers: Int[Tensor, "alive"],
        count: int,
        loss_scale: Float[Tensor, ""] | float,
    ) -> Discovery:
        demands = torch.cat([-self.total[None], self.flipped.T]) / loss_scale
        picks, coefficients, explained = pursue(directions, demands, min(count, len(directions)))
        chosen, none = picks[0].clamp_min(0), picks[0] < 0
        alone = latent_demand(directions[chosen], self.total / loss_scale, self.second / loss_scale**2)
        signed, z, share = (torch.where(none, torch.nan, each) for each in alone)
        tops = (demands @ directions.T).abs().amax(-1)
        return Discovery(
            latents=torch.where(none, -1, numbers[chosen]),
            coefficients=coefficients[0],
            signed=signed,
            z=z,
            share=share,
            explained=explained[0],
            top=tops[0],
            null_top=tops[1:],
            null_explained=explained[1:],
            tokens=self.tokens,
        )


def latent_demand(
    directions: Float[Tensor, "latent d_model"],
    total: Float[Tensor, "d_model"],
    second: Float[Tensor, "d_model d_model"],
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "latent"], Float[Tensor, "latent"], Float[Tensor, "latent"]]:
    """Signed demand, its z against random signs of the tokens, and the energy share of each latent alone.

        signed_i = -d_i . total       z_i = signed_i / sqrt(d_i^T S d_i)       share_i = d_i^T S d_i / tr S

    Args:
        directions: unit rows.
        total: `sum_t g_t`.
        second: `S = sum_t g_t g_t^T`.
        chunk: latents at a time, which bounds the memory.

    Example:
        >>> gradients = torch.tensor([[-3.0, 0.0], [-4.0, 5.0]])
        >>> latent_demand(torch.eye(2), gradients.sum(0), gradients.T @ gradients)
        (tensor([ 7., -5.]), tensor([ 1.4000, -1.0000]), tensor([0.5000, 0.5000]))
    """
    signed = -(directions @ total)
    energy = torch.cat([((rows @ second) * rows).sum(-1) for rows in directions.split(chunk)]).clamp_min(0.0)
    return signed, signed / energy.sqrt(), energy / second.diagonal().sum()


def pursue(
    directions: Float[Tensor, "latent d_model"],
    targets: Float[Tensor, "target d_model"],
    count: int,
    *,
    sweeps: int = SWEEPS,
) -> tuple[Int[Tensor, "target pick"], Float[Tensor, "target pick"], Float[Tensor, "target pick"]]:
    """Write each target as few signed directions: orthogonal matching pursuit, then a second look at each pick.

        pick_k = argmax_i |d_i . r_k|,      r_k = v - (projection of v on the span of the other picks)

    (Pati et al. 1993.) The residual is orthogonal to what was picked, so what is much like another pick is not picked
    for it. The first picks are made while the rest of the target still disturbs, so that a near duplicate of the right
    direction may win: `sweeps` times each pick is dropped and chosen again, given all the others (Sturm and
    Christensen 2010), and replaced where that explains more. Nothing is brought to the host.

    Args:
        directions: unit rows.
        targets: the vectors `v`.
        count: picks for each.
        sweeps: how often every pick is looked at again.

    Returns:
        The picks, -1 once nothing is left to pick; their least-squares coefficients over all the picks; and the share
        of `||v||^2` explained by the picks so far, NaN for `v = 0`.

    Example:
        >>> pursue(torch.eye(3), torch.tensor([[0.0, -4.0, 3.0]]), 3)
        (tensor([[ 1,  2, -1]]), tensor([[-4.,  3.,  0.]]), tensor([[0.6400, 1.0000, 1.0000]]))
    """
    length = targets.norm(dim=-1, keepdim=True)
    units = (targets / torch.where(length > 0, length, 1.0)).double()
    picks = torch.full((len(targets), count), -1, device=targets.device)
    for k in [*range(count)] * (1 + sweeps):
        picks[:, k] = _choose(directions, units, picks, k)
    picks = picks.gather(1, (picks < 0).to(torch.int8).argsort(dim=1, stable=True))
    fit = _Fit.of(directions, units, picks)
    explained = torch.where(length > 0, fit.gained.square().cumsum(-1), torch.nan)
    return picks, (fit.coefficients * length).float(), explained.float()


def _choose(
    directions: Float[Tensor, "latent d_model"],
    units: Float[Tensor, "target d_model"],
    picks: Int[Tensor, "target pick"],
    k: int,
) -> Int[Tensor, "target"]:
    """The `k`-th pick or its rival, whichever explains more beside the others; -1 if neither explains anything."""
    others = picks.clone()
    others[:, k] = -1
    fit = _Fit.of(directions, units, others)
    residual = units - (fit.coefficients[..., None] * fit.rows).sum(1)
    rival = (residual.to(directions.dtype) @ directions.T).abs().argmax(-1)
    found = torch.stack([picks[:, k], rival], dim=1)
    gain, best = fit.gain(_rows(directions, found), residual).max(-1)
    return torch.where(gain > TOLERANCE**2, found.gather(1, best[:, None])[:, 0], -1)


@dataclass(frozen=True, eq=False)
class _Fit:
    """Least squares of each target on its picks: `G = P P^T = L L^T`, `c = G^-1 P v`, and `|L^-1 P v|^2` is gained."""

    rows: Float[Tensor, "target pick d_model"]
    factor: Float[Tensor, "target pick pick"]
    gained: Float[Tensor, "target pick"]

    @classmethod
    def of(
        cls,
        directions: Float[Tensor, "latent d_model"],
        units: Float[Tensor, "target d_model"],
        picks: Int[Tensor, "target pick"],
    ) -> _Fit:
        rows = _rows(directions, picks)
        gram = rows @ rows.mT + torch.diag_embed((picks < 0).double())
        factor = torch.linalg.cholesky_ex(gram).L  # without the check of `cholesky`, which waits for the device
        gained = torch.linalg.solve_triangular(factor, rows @ units[..., None], upper=False)
        return cls(rows, factor, gained[..., 0])

    @property
    def coefficients(self) -> Float[Tensor, "target pick"]:
        return torch.linalg.solve_triangular(self.factor.mT, self.gained[..., None], upper=True)[..., 0]

    def gain(
        self, rows: Float[Tensor, "target other d_model"], residual: Float[Tensor, "target d_model"]
    ) -> Float[Tensor, "target other"]:
        """How much each of some rows would explain beside the picks; 0 for one inside their span."""
        inside = torch.linalg.solve_triangular(self.factor, self.rows @ rows.mT, upper=False).square().sum(1)
        outside = rows.square().sum(-1) - inside
        along = (rows @ residual[..., None])[..., 0]
        return torch.where(outside > OUTSIDE, along.square() / outside, 0.0)


def _rows(
    directions: Float[Tensor, "latent d_model"], picks: Int[Tensor, "target pick"]
) -> Float[Tensor, "target pick d_model"]:
    """The picked directions, in double precision; zero for none."""
    return torch.where((picks < 0)[..., None], 0.0, directions[picks.clamp_min(0)].double())


def read_labels(path: str | Path) -> dict[int, str]:
    """Read what each latent is about from JSON: `{"12": "text"}`, or objects as Neuronpedia exports them.

    An object has an `index` (or `feature`) and a `description` (or `label`); other keys are passed over, and so is an
    object without a text. Where a latent has several, the first counts. A `.jsonl` file holds one object a line. What
    names the SAE in Neuronpedia's objects (`modelId`, `layer` or `sourceId`) must be the same in all of them.

    Raises:
        ValueError: the file cannot be read, is not such JSON, is about several SAEs, or has an index that is no
            latent's number.
    """
    path = Path(path)
    document = _document(path)
    if isinstance(document, dict):
        pairs = list(document.items())
    elif isinstance(document, list):
        pairs = [_index_and_text(entry, number, path) for number, entry in enumerate(document)]
        _check_one_sae(document, path)
    else:
        raise ValueError(f"'{path}' holds a {type(document).__name__}, expected an object or a list of objects")
    labels: dict[int, str] = {}
    for index, text in pairs:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"'{path}' labels latent {index!r} with a {type(text).__name__}, expected a text")
        if text:
            labels.setdefault(_latent(index, path), text)
    return labels


def _document(path: Path) -> object:
    """A file's JSON; of a `.jsonl` file the list of its lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except OSError as error:
        raise ValueError(f"cannot read labels from '{path}': {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        lines = "; one object a line is named .jsonl" if path.suffix != ".jsonl" else ""
        raise ValueError(f"'{path}' is not JSON ({error}); labels are a JSON export{lines}") from error


def _check_one_sae(entries: Sequence[Mapping[str, object]], path: Path) -> None:
    for key in ("modelId", "layer", "sourceId"):
        named = dict.fromkeys(str(entry[key]) for entry in entries if entry.get(key) is not None)
        if len(named) > 1:
            shown = ", ".join(repr(name[:40]) for name in list(named)[:3])
            raise ValueError(f"'{path}' is about several SAEs, {key} {shown}; keep the lines of the one that is read")


def _index_and_text(entry: object, number: int, path: Path) -> tuple[object, object]:
    if not isinstance(entry, dict):
        raise ValueError(f"entry {number} of '{path}' is a {type(entry).__name__}, expected an object")
    index = next((entry[key] for key in ("index", "feature") if key in entry), None)
    if index is None:
        raise ValueError(f"entry {number} of '{path}' has neither 'index' nor 'feature'; which latent is it about?")
    if not {"description", "label"} & entry.keys():
        raise ValueError(f"entry {number} of '{path}' has neither 'description' nor 'label'")
    return index, entry.get("description") or entry.get("label")


def _latent(index: object, path: Path) -> int:
    if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
        return index
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 12:
        return int(index)
    raise ValueError(f"'{path}' labels {str(index)[:40]!r}, expected a latent's number such as 123 or \"123\"")


def _concepts_of(bank: ConceptBank, hook: str) -> dict[int, dict[str, None]]:
    """The concepts that have each latent at a hook, in the bank's order."""
    found: dict[int, dict[str, None]] = {}
    for concept, at, source in zip(bank.concepts, bank.hooks, bank.sources, strict=True):
        if at == hook and "latent" in source:
            found.setdefault(int(source["latent"]), {})[concept] = None
    return found


def _one_line(text: str) -> str:
    """Printable characters of a text on one line: no control, direction or surrogate characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:LABEL_LENGTH]
