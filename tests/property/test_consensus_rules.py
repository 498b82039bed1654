"""Every rule keeps its contract on arrays nobody chose; one has a slow reference."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bentoml_secure.consensus.rules import RULES, load_rule
from bentoml_secure.tensors import DTYPES, Array

SHAPE = arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
TENSOR = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: arrays.arrays(np.dtype(dtype), SHAPE)
)
ANSWER = st.dictionaries(st.sampled_from(["x", "y"]), TENSOR)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[dict[str, Array], dict[str, Array]]:
    """Two answers of one layout, or of any."""
    a = draw(ANSWER)
    if draw(st.booleans()):
        return a, draw(ANSWER)
    b = {
        name: draw(arrays.arrays(array.dtype, array.shape)) for name, array in a.items()
    }
    return a, b


@pytest.mark.parametrize("kind", RULES)
@given(pair=neighbours())
def test_distance_is_symmetric_finite_and_never_fails(
    kind: str, pair: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    rule = load_rule(kind)
    a, b = pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there, back = rule.distance(a, b), rule.distance(b, a)
    assert there == back
    assert there is None or (math.isfinite(there) and there >= 0)
    assert rule.distance(dict(reversed(a.items())), b) == there


@pytest.mark.parametrize("kind", RULES)
@given(answer=ANSWER)
def test_a_finite_answer_is_at_distance_0_from_its_copy(
    kind: str, answer: dict[str, Array]
) -> None:
    finite = {
        name: np.nan_to_num(array) if array.dtype.kind == "f" else array
        for name, array in answer.items()
    }
    copies = {name: array.copy() for name, array in finite.items()}
    assert load_rule(kind).distance(finite, copies) == 0.0


ELEMENT = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(ELEMENT, ELEMENT), min_size=1, max_size=20))
def test_distance_equals_the_formula_in_plain_python(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    measured = load_rule("within_tolerance").distance(
        {"y": np.array(a, np.float32)}, {"y": np.array(b, np.float32)}
    )
    scales = [math.sqrt(math.fsum(x * x for x in v) / len(v)) for v in (a, b)]
    deviation = max(abs(x - y) for x, y in pairs)
    if deviation == 0:
        assert measured == 0
    elif min(scales) == 0:
        assert measured is None
    else:
        assert measured == pytest.approx(deviation / min(scales), rel=1e-9)
