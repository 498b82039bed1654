"""Choosing a circuit's parameters: the cheapest that are accurate on real requests.

1. one scale for all segments: the smallest at which the chain's answers stay within
   two thirds of the bound; only tables of look-ups grow with it
2. each segment's range: the smallest under which the requests run, and four times
   that; and what is looked up, of activations four times as large as well
3. logrows, decomposition and columns: those of the least proving time, as the backend
   predicts it from settings; no key is made for it. Commitments are of equal columns
   only: where they link, logrows are the same for all segments

ezkl's own calibration chooses scales segment by segment, so that they do not link, and
a decomposition that needs 2**15 rows of whatever circuit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.proofs.accuracy import (
    Measured,
    Reference,
    execute_chain,
    measure,
)
from bentoml_secure.proofs.boundary import SaltForm, activations_of
from bentoml_secure.proofs.circuit import Form
from bentoml_secure.proofs.links import Ends, Link
from bentoml_secure.proofs.proof import (
    BoundaryValues,
    Limits,
    Parameters,
    ProofBackend,
)

FIRST_SCALE = 8
SMALLEST_SCALE = 4
LARGEST_SCALE = 20
MARGIN = 2
"""Of the bound over what the requests showed: others may show more."""

HEADROOM_BITS = 2
PROBED_REQUESTS = 32
EXTREME_REQUESTS = 8
_LEAST_RANGE_BITS = 23
"""Room for 22 bits of salt: fewer elements of it are hashed, 41 rows each."""

_ROWS_TRIED = 4
_INNER_COLUMNS = (1, 2)

# A circuit that is only run, never proven: every number fits.
_WIDE_BASE = 4
_WIDE_LEGS = 30
_WIDE_LOGROWS = 22
_WIDE_SALT = SaltForm(elements=8, bits=16)

# Rows that a table of digits leaves over at least.
_SPARE_ROWS = 64

Model = Callable[[int, SaltForm], bytes]
Progress = Callable[[str], None]
_Tried = dict[int, tuple[float, Parameters]]
"""CPU seconds of a proof, and parameters, by logrows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Parameters of a whole chain.

    Attributes:
        scale: Of all segments.
        salt: Form of all boundaries' salts.
        parameters: Of each segment.
    """

    scale: int
    salt: SaltForm
    parameters: tuple[Parameters, ...]

    @classmethod
    def of(cls, parameters: Sequence[Parameters], link: Link = Link.HASHED) -> Chosen:
        """Return the choice that given parameters of one scale are."""
        smallest = min(p.decomposition_base**p.decomposition_legs for p in parameters)
        return cls(
            scale=parameters[0].scale,
            salt=SaltForm.below(smallest, link.salt_bits),
            parameters=tuple(parameters),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What a segment's numbers take.

    Attributes:
        bits: Of magnitudes.
        lookup_bound: Of arguments of look-ups; 0 where there are none.
    """

    bits: int
    lookup_bound: int


def choose(
    backend: ProofBackend,
    model: Model,
    forms: Sequence[Form],
    reference: Reference,
    *,
    accuracy: float,
    limits: Limits,
    link: Link = Link.HASHED,
    progress: Progress = lambda doing: None,
) -> Chosen:
    """Choose parameters for a chain of segments; see the module.

    Args:
        backend: That will prove.
        model: Returns the graph of a segment's circuit for a form of salt.
        forms: Of the boundaries.
        reference: Requests, and what the model makes of them.
        accuracy: Largest absolute difference of an output's element.
        limits: Of each process.
        link: How boundaries between segments are stated.
        progress: Told what is tried now.

    Raises:
        ConfigurationError: No scale is accurate enough, or an operator cannot be
            proven.
        UnavailableError: A process was killed, by its limits or otherwise.
    """
    search = _Search(backend, model, forms, reference, limits, progress)
    scale, passed = search.scale(accuracy)
    needs = [
        search.need(index, scale, passed[index]) for index in range(len(forms) - 1)
    ]
    salt = SaltForm.below(1 << min(need.bits for need in needs), link.salt_bits)
    tried = search.tried(scale, needs, salt, link)
    return Chosen(scale=scale, salt=salt, parameters=_cheapest(tried, link))


class _Search:
    """What every step of one search needs."""

    def __init__(
        self,
        backend: ProofBackend,
        model: Model,
        forms: Sequence[Form],
        reference: Reference,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._backend, self._model, self._forms = backend, model, forms
        self._requests = reference.requests[:PROBED_REQUESTS]
        self._answers = reference.answers[:PROBED_REQUESTS]
        self._limits, self._progress = limits, progress
        self._models = [model(index, _WIDE_SALT) for index in range(len(forms) - 1)]

    def scale(self, accuracy: float) -> tuple[int, list[list[BoundaryValues]]]:
        """Return the smallest scale that is accurate, and what passes at it."""
        want = accuracy / MARGIN
        measured, passed = self._at(FIRST_SCALE)
        largest = max(measured.largest.values())
        if not math.isfinite(largest):
            measured.require_within(want)
        # Each binary digit more halves the error, about.
        guess = FIRST_SCALE + math.ceil(math.log2(max(largest, 2**-40) / want))
        scale = min(max(guess, SMALLEST_SCALE), LARGEST_SCALE)
        if scale != FIRST_SCALE:
            measured, passed = self._at(scale)
        while max(measured.largest.values()) > want and scale < LARGEST_SCALE:
            scale += 1
            measured, passed = self._at(scale)
        measured.require_within(want)
        return scale, passed

    def _at(self, scale: int) -> tuple[Measured, list[list[BoundaryValues]]]:
        self._progress(f"trying scale {scale}")
        circuits: list[tuple[bytes, None]] = []
        for model in self._models:
            parameters = _wide(scale)
            settings, rows = self._backend.measure(model, parameters, self._limits)
            if (rows.input_scale, rows.output_scale) != (scale, scale):
                raise ConfigurationError(
                    f"segment {len(circuits)}: takes scale {rows.input_scale} and "
                    f"gives {rows.output_scale}, want {scale} at both ends.",
                    remedy="Cut elsewhere: after an operator that multiplies.",
                )
            circuit = self._backend.compile(model, settings, self._limits)
            circuits.append((circuit, None))
        inputs = [activations_of(r, self._forms[0], scale) for r in self._requests]
        try:
            passed = execute_chain(
                self._backend, circuits, inputs, _WIDE_SALT, self._limits
            )
        except MalformedInputError as error:
            raise ConfigurationError(
                f"scale {scale}: {error}",
                remedy="Scale what the model computes with into a smaller range.",
            ) from error
        return measure(self._answers, passed[-1], self._forms[-1], scale), passed

    def need(
        self, index: int, scale: int, boundaries: Sequence[BoundaryValues]
    ) -> _Need:
        """Return what a segment's numbers take on what it is given."""
        self._progress(f"segment {index}: range of its numbers")
        extreme = sorted(boundaries, key=lambda values: max(map(abs, values)))
        given = extreme[-EXTREME_REQUESTS:]
        wide = _wide(scale)
        circuit = self._circuit(index, wide)
        looked_up = self._backend.lookups(circuit, _unsalted(given), self._limits)
        if looked_up:
            # Not just that much larger: some operators clamp what they look up.
            larger = [tuple(v << HEADROOM_BITS for v in values) for values in given]
            more = self._backend.lookups(circuit, _unsalted(larger), self._limits)
            looked_up = max(looked_up, more)

        def runs(legs: int) -> bool:
            """Tell whether the requests run in so many digits."""
            narrow = self._circuit(index, replace(wide, decomposition_legs=legs))
            try:
                self._backend.execute(narrow, _unsalted(given), self._limits)
            except MalformedInputError:
                return False
            return True

        digits = _smallest(runs, 1, _WIDE_LEGS)
        bits = digits * int(math.log2(_WIDE_BASE)) + HEADROOM_BITS
        return _Need(bits=max(bits, _LEAST_RANGE_BITS), lookup_bound=looked_up)

    def _circuit(self, index: int, parameters: Parameters) -> bytes:
        model = self._models[index]
        settings, _ = self._backend.measure(model, parameters, self._limits)
        return self._backend.compile(model, settings, self._limits)

    def tried(
        self, scale: int, needs: Sequence[_Need], salt: SaltForm, link: Link
    ) -> list[_Tried]:
        """Return for each segment the cheapest parameters of each number of rows."""
        count = len(needs)
        models = [self._model(index, salt) for index in range(count)]
        ends = [Ends.of(link, index, count) for index in range(count)]
        measured = [
            self._backend.measure(model, _wide(scale), self._limits, of)
            for model, of in zip(models, ends, strict=True)
        ]
        least = [rows.least_logrows for _, rows in measured]
        if link is Link.POLYCOMMIT:
            least = [max(least)] * count
        return [
            self._try(index, models[index], ends[index], _candidates(scale, need, rows))
            for index, (need, rows) in enumerate(zip(needs, least, strict=True))
        ]

    def _try(
        self, index: int, model: bytes, ends: Ends, candidates: Iterable[Parameters]
    ) -> _Tried:
        self._progress(f"segment {index}: rows and columns")
        found: _Tried = {}
        for parameters in candidates:
            _, rows = self._backend.measure(model, parameters, self._limits, ends)
            if rows.least_logrows > parameters.logrows:
                continue
            before = found.get(parameters.logrows)
            if before is None or rows.proving_seconds < before[0]:
                found[parameters.logrows] = rows.proving_seconds, parameters
        if not found:
            raise ConfigurationError(f"segment {index}: no number of rows fits it")
        return found


def _cheapest(tried: Sequence[_Tried], link: Link) -> tuple[Parameters, ...]:
    """Return parameters of the least proving time: each segment's, or of all."""
    if link is Link.HASHED:
        return tuple(min(found.values(), key=_seconds)[1] for found in tried)
    common = set.intersection(*(set(found) for found in tried))
    if not common:
        raise ConfigurationError(
            f"{link} links: no number of rows fits all segments.",
            remedy="Cut the model into segments more alike, or link by hashes.",
        )
    rows = min(
        sorted(common), key=lambda rows: sum(_seconds(found[rows]) for found in tried)
    )
    return tuple(found[rows][1] for found in tried)


def _seconds(found: tuple[float, Parameters]) -> float:
    return found[0]


def _wide(scale: int) -> Parameters:
    return Parameters(
        scale=scale,
        decomposition_base=_WIDE_BASE,
        decomposition_legs=_WIDE_LEGS,
        inner_columns=1,
        logrows=_WIDE_LOGROWS,
        lookup_bound=1,
    )


def _candidates(scale: int, need: _Need, least: int) -> Iterator[Parameters]:
    """Yield parameters that a segment's numbers fit, from few rows to many."""
    for logrows in range(least, least + _ROWS_TRIED):
        # Fewest digits; and of bases with as many digits, the smallest.
        largest = (1 << logrows) - _SPARE_ROWS
        legs = math.ceil(need.bits / math.log2(largest))
        base = math.ceil(2 ** (need.bits / legs))
        for columns in _INNER_COLUMNS:
            yield Parameters(
                scale=scale,
                decomposition_base=base,
                decomposition_legs=legs,
                inner_columns=columns,
                logrows=logrows,
                lookup_bound=need.lookup_bound,
            )


def _unsalted(
    boundaries: Sequence[BoundaryValues],
) -> list[tuple[BoundaryValues, BoundaryValues]]:
    salt = (0,) * _WIDE_SALT.elements
    return [(values + salt, salt) for values in boundaries]


def _smallest(works: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest number that works; the largest is known to."""
    while low < high:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle + 1
    return high
