"""What the documentation says that can be checked: links, tests that it names, codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aibrix_ray import errors

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
PARITY = ROOT / "docs" / "aibrix-parity.md"

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def parity_rows() -> Iterator[tuple[str, str, str]]:
    """Yield feature, status and tests of each row."""
    for line in PARITY.read_text().splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if line.startswith("| ") and cells[0] != "feature":
            feature, status, _, tests = cells
            yield feature, status, tests


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(path), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_are_named_exist(page: Path) -> None:
    for file, test in _TEST.findall(page.read_text()):
        path = ROOT / file
        assert path.exists(), file
        if test:
            functions = {
                node.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert test in functions, f"{file}::{test}"


def test_what_is_said_to_work_names_its_test_and_what_is_planned_none() -> None:
    rows = list(parity_rows())
    assert len(rows) > 70
    for feature, status, tests in rows:
        assert status in ("done", "partly", "planned"), feature
        assert bool(tests) == (status != "planned"), feature


def test_the_error_codes_that_are_listed_are_those_that_exist() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    listed = set(re.findall(r"^\| (\d{3}) \| `(\w+)`", page, re.M))
    existing = {
        (str(error.status), error.code)
        for error in vars(errors).values()
        if isinstance(error, type)
        and issubclass(error, errors.ApiError)
        and error not in (errors.ApiError, errors.EngineError, errors.ServerError)
    }
    assert listed == existing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_has_one_title(page: Path) -> None:
    titles = [line for line in _FENCE.sub("", page.read_text()).splitlines() if line[:2] == "# "]
    assert len(titles) == 1
