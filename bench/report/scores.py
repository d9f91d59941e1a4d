"""The paper's claims in a line each: what it says, what is found here, and whether that holds.

Every claim is *held*, *did not hold*, *undecided* where the data are too few to tell, or *not
testable here*.  Over several worlds and tables one in which it did not hold is enough.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import pandas as pd

from bench.report.claims import PAPER, verdict
from bench.report.evidence import Evidence
from bench.report.numbers import MISSING

UNTESTABLE = "not testable here"


class Stated(Protocol):
    """What every kind of claim has."""

    @property
    def statement(self) -> str:
        """What is claimed."""

    @property
    def source(self) -> str:
        """Where."""

    @property
    def paper(self) -> str:
        """The paper's own numbers."""

    @property
    def table(self) -> str:
        """Of the paper."""


class Judged(Protocol):
    """A claim with its evidence."""

    @property
    def claim(self) -> Stated:
        """The claim."""

    @property
    def evidence(self) -> list[Evidence]:
        """Of all tables that it applies to."""


class Score(NamedTuple):
    """A line: the table of the paper, the claim, its numbers, ours with intervals, the verdict."""

    table: str
    claim: str
    paper: str
    here: str
    verdict: str


class Piece(NamedTuple):
    """A piece of evidence: the paper's table, the claim, where, what it says, and the figures."""

    table: str
    claim: str
    where: str
    says: str
    figures: str


def pieces(found: Iterable[Judged]) -> list[Piece]:
    """All evidence of those claims that are the paper's."""
    return [
        Piece(one.claim.table, one.claim.statement, e.where, verdict([e.held]), e.figures)
        for one in found
        if one.claim.source.startswith(PAPER)
        for e in one.evidence
    ]


def scores(found: Iterable[Judged]) -> list[Score]:
    """The lines of those claims that are the paper's, those that nothing here tests last."""
    lines = [score(one) for one in found if one.claim.source.startswith(PAPER)]
    return sorted(lines, key=lambda line: line.verdict == UNTESTABLE)


def score(found: Judged) -> Score:
    """One claim's line; of several pieces of evidence the one that decides."""
    claim, evidence = found.claim, found.evidence
    said = verdict([e.held for e in evidence]) if evidence else UNTESTABLE
    return Score(claim.table, claim.statement, claim.paper or MISSING, _here(evidence), said)


def _here(evidence: list[Evidence]) -> str:
    if not evidence:
        return MISSING
    ranked = sorted(evidence, key=lambda e: {False: 0, None: 1, True: 2}[e.held])
    first, others = ranked[0], len(ranked) - 1
    also = f" ({others} more)" if others else ""
    return f"{first.where}: {first.figures}{also}"


def listed(found: Iterable[Score]) -> pd.DataFrame:
    """Lines as a table of text."""
    return pd.DataFrame(list(found), columns=list(Score._fields))


def listed_pieces(found: Iterable[Piece]) -> pd.DataFrame:
    """Pieces of evidence as a table of text."""
    return pd.DataFrame(list(found), columns=list(Piece._fields))
