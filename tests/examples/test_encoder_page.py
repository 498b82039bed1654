"""The figures of cheats on their page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.cheats_deviation import EVERYWHERE
from benchmarks.cheats_page import BEGIN, END, WORDS, section, write_section
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.testing.cheats import CHEATS
from tests.harness import REPOSITORY

FOUND: dict[str, Any] = {
    "environment": {"Python": "3.11", "onnxruntime": "1.32.0"},
    "figures": {
        "seconds_per_request": 0.1234,
        "cheats": [
            {
                "cheat": "fp16",
                "requests": 200,
                "detected": 200,
                "named": 199,
                "silent": 1,
                "wrong": 0,
                "refused": 1,
            }
        ],
        "honest": [
            {
                "runtimes": [
                    "onnxruntime 1.32.0",
                    "onnxruntime 1.23.2",
                    "torch 2.13.0",
                ],
                "requests": 2500,
                "accusations": 0,
                "absences": 2,
                "wrong": 0,
                "refused": 0,
                "largest": 3.2e-6,
            }
        ],
        "noise": [{"segment": 1, "caught": 1.002, "missed": 0.998, "served": 1e-5}],
        "tolerances": [1e-4, 2.2e-4],
        "deviations": [
            {
                "segment": EVERYWHERE,
                "kind": "aimed",
                "largest": 6.5e-4,
                "cosine": 0.99999,
            }
        ],
    },
}


def test_every_figure_has_its_place() -> None:
    got = section(FOUND)
    assert "A request took 123 ms" in got
    for row in (
        "weights rounded to float16 | 200 | 200 (100.0 %) | 199 (99.5 %) | 1 | 0 | 1 |",
        "| onnxruntime 1.32.0; onnxruntime 1.23.2; torch 2.13.0 | 2500 | 0 | 2 | 0 |",
        "| 1 | 2.20e-04 | 1.002 | 0.998 | 1.0e-05 |",
        "| all four | aimed | 6.5e-04 | 1.0e-05 |",
    ):
        assert row in got


def test_the_section_is_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_section(page, FOUND)
    first = page.read_text()
    assert first.startswith(f"before\n{BEGIN}\n")
    assert first.endswith(f"{END}\nafter\n")
    assert "old" not in first
    write_section(page, FOUND)
    assert page.read_text() == first


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigurationError, match="want the marks"):
        write_section(page, FOUND)
    assert page.read_text() == text


def test_the_documents_page_has_the_marks() -> None:
    text = (REPOSITORY / "docs" / "consensus.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1


def test_every_cheat_is_said_in_words() -> None:
    assert set(WORDS) == set(CHEATS)
