"""The real encoder under ``bentoml serve``: 22 million parameters, twelve runners."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.cheats import OTHER_ONNXRUNTIME, measure_honest
from benchmarks.cheats_asking import Questioner, texts_of
from benchmarks.cheats_deviation import deviations
from benchmarks.cheats_environments import make_environment
from benchmarks.cheats_page import WORDS
from benchmarks.cheats_runs import find_noise, is_named, run_cheat
from benchmarks.cheats_stage import Stage, make_stage, serve_cheating
from bentoml_secure import SecureClient
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.testing.cheats import CHEATS
from examples.encoder.prepare import calibrate
from tests.encoder_case import encoder_models

MOST_RESIDENT = 6 << 30
LONG = " ".join(["bee"] * 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The encoder, served."""

    stage: Stage
    url: str
    questioner: Questioner


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """An entry and twelve runners that can cheat."""
    models = encoder_models(tmp_path_factory)
    stage = make_stage(tmp_path_factory.mktemp("encoder"), models)
    with serve_cheating(stage) as url, Questioner(url, stage) as questioner:
        questioner.ask_until_whole()
        yield Running(stage=stage, url=url, questioner=questioner)


def test_answers_are_the_whole_models_bit_for_bit(running: Running) -> None:
    # The fourth has two texts, one of them filled up.
    for _ in range(4):
        asked = running.questioner.ask()
        assert asked.distance == 0.0
        assert not asked.named
        assert not asked.absent


def test_the_receipt_has_four_segments_and_thirteen_parties(running: Running) -> None:
    with SecureClient(running.url, running.stage.trust) as client:
        answer = client.call("embed", {"texts": texts_of(3)})
    embeddings = np.asarray(answer.value)
    assert embeddings.shape == (2, 384)
    np.testing.assert_allclose((embeddings**2).sum(1), 1, atol=1e-6)
    names = {party["name"] for party in answer.verdict.claims["parties"]}
    assert names == {"Encoder", *(seat.name for seat in running.stage.seats)}
    assert len(names) == 13


def test_thirteen_processes_fit_into_six_gigabytes(running: Running) -> None:
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("BENTOML_HOME") == str(
                running.stage.folder / "home"
            )
            if is_ours:
                found.append(process.memory_info().rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    assert len(found) >= 13
    assert sum(found) < MOST_RESIDENT


@pytest.mark.parametrize(("cheat", "place"), [("fp16", 4), ("anothers", 3)])
def test_a_cheat_is_outvoted_and_named(
    running: Running, cheat: str, place: int
) -> None:
    seat = running.stage.seats[place]
    with running.stage.cheating(seat, cheat):
        # The altered segment is loaded in the first.
        running.questioner.ask()
        asked = running.questioner.ask()
    assert is_named(asked, seat)
    assert asked.distance == 0.0
    assert not running.questioner.ask().named


def test_what_the_model_does_not_read_is_the_callers_to_decide(
    running: Running,
) -> None:
    with SecureClient(running.url, running.stage.trust) as client:
        with pytest.raises(ConfigurationError, match=r"302 tokens.*truncate=true"):
            client.call("embed", {"texts": ["bee", LONG]})
        cut = client.call("embed", {"texts": [LONG], "truncate": True})
        shorter = " ".join(["bee"] * 254)
        whole = client.call("embed", {"texts": [shorter]})
    assert cut.value == whole.value


@pytest.mark.parametrize(
    ("texts", "said"),
    [([], "got 0, want 1 to 32"), (["a"] * 33, "got 33"), (["a" * 4097], "4097")],
)
def test_bounds_are_told_to_the_caller(
    running: Running, texts: list[str], said: str
) -> None:
    with (
        SecureClient(running.url, running.stage.trust) as client,
        pytest.raises(ConfigurationError, match=said),
    ):
        client.call("embed", {"texts": texts})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cheat", CHEATS)
def test_every_cheat_in_every_seat(running: Running, cheat: str) -> None:
    assert cheat in WORDS
    run = run_cheat(running.stage, running.questioner, cheat, requests=24)
    assert (run.detected, run.named) == (24, 24)
    assert (run.wrong, run.refused) == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("segment", range(4))
def test_noise_is_caught_from_the_tolerance_on(running: Running, segment: int) -> None:
    found = find_noise(running.stage, running.questioner, segment)
    assert found.caught == pytest.approx(1, rel=0.02)
    assert found.missed < found.caught


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_honest_replicas_on_mixed_runtimes_are_not_accused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Needs pip's index, for another version of ONNX Runtime."""
    models = encoder_models(tmp_path_factory)
    python = make_environment(tmp_path / "other", OTHER_ONNXRUNTIME)
    own = tmp_path / "models"
    shutil.copytree(models, own)
    calibrate(own, [python])
    stage = make_stage(tmp_path / "stage", own)
    for run in measure_honest(stage, python, requests=40):
        assert run["requests"] == 20
        assert (run["accusations"], run["wrong"], run["refused"]) == (0, 0, 0)
        # They are not bit-equal: it is the tolerance that holds.
        assert 0 < run["largest"] < stage.plan.segments[-1].tolerance


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lies_within_tolerance_hardly_move_an_embedding(running: Running) -> None:
    found = {(one.segment, one.kind): one for one in deviations(running.stage)}
    assert len(found) == 10
    for (segment, kind), one in found.items():
        assert 0 < one.largest < 1e-3
        assert 0.9999 < one.cosine < 1
        if kind == "aimed" and segment != 3:
            assert one.largest > found[segment, "random"].largest
