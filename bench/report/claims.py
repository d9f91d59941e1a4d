"""What is claimed about value estimators, and what this frame says to it.

A claim has a fixed rule that turns each facet it applies to into evidence: held, not held, or
undecided where the data are too few to tell, with the figures behind it.  Worlds are judged apart:
one facet where it did not hold refutes it in that world; it held there if it held in all.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pandas as pd

from bench.report import judges, learned
from bench.report.evidence import Evidence
from bench.report.facets import Facet, split

HELD, FAILED, OPEN, UNTESTED = "held", "did not hold", "undecided", "not tested here"


class Claim(NamedTuple):
    """A statement, where it is from, the rule that judges it, and the judge.

    Of the paper's also what it prints, in words, and in which table or figure.
    """

    statement: str
    source: str
    rule: str
    judge: Callable[[Facet], Iterator[Evidence]]
    paper: str = ""
    table: str = ""


class Verdict(NamedTuple):
    """A claim with what the frame says to it.

    Attributes:
        claim: What is claimed.
        verdicts: World to verdict, of the worlds that have evidence.
        evidence: Of all facets that it applies to.
    """

    claim: Claim
    verdicts: dict[str, str]
    evidence: list[Evidence]

    def in_world(self, world: str) -> str:
        """What one world says to it."""
        return self.verdicts.get(world, UNTESTED)


def _untested(_: Facet) -> Iterator[Evidence]:
    return iter(())


PAPER = "arXiv:2605.19804"
EXACT = "judged where the truth is exact"
LATER = "needs alignment runs, which this suite has none of"

CLAIMS = (
    Claim(
        "Tweedie's estimate is exact for a reward linear in the latent",
        "by linearity; Chung et al., 2022, arXiv:2209.14687",
        f"RMSE below 1e-8 in float64, 1e-4 in float32, at every noise level; {EXACT}",
        judges.tweedie_exact,
    ),
    Claim(
        "Tweedie's estimate of a nonlinear reward is biased, and more so at more noise",
        f"Jensen gap; {PAPER}",
        "squared bias per latent clearly above 0 at every noise level, and clearly larger at the "
        "highest than at the lowest; it did not hold if clearly smaller; with a bank's truth the "
        "size of the mean bias instead",
        judges.tweedie_biased,
    ),
    Claim(
        "Monte Carlo with the reversal kernel is unbiased at the most solver steps measured",
        "nu^2 = 2t/(1-t) reverses the forward process",
        "at the most solver steps, neither bias nor squared bias per latent is clearly off 0, at "
        "any noise level and N; with a bank's truth bias alone, which can only refute it",
        judges.reversal_unbiased,
    ),
    Claim(
        "Monte Carlo with another kernel is biased for the posterior",
        "it keeps the marginals, not p(z_0 | z_t)",
        "for each kernel, bias or squared bias is clearly off 0 at some noise level, or it is "
        "undecided; with a bank's truth bias alone",
        judges.others_biased,
    ),
    Claim(
        "The error of unbiased Monte Carlo falls as 1 / sqrt(N)",
        "variance Var[r | z_t] / N",
        "the slope of log RMSE against log N, at three N or more, is -0.5 +- 0.05 at every noise "
        f"level; it did not hold where an interval misses that range; {EXACT}",
        judges.root_n,
    ),
    Claim(
        "Monte Carlo costs many times a Tweedie estimate",
        "N k denoiser calls against one",
        "the interval of the dearest one's ratio of times lies above 10; did not hold: below",
        judges.monte_carlo_dear,
    ),
    Claim(
        "The stitched value model is cheaper than a Tweedie estimate (stage 1 only: the "
        "closed-form layer, nothing finetuned)",
        f"{PAPER}, section 4.1",
        "the interval of the ratio of times lies below 1; did not hold: above; its skill is "
        "reported, not judged",
        judges.stitched_cheaper,
    ),
    Claim(
        "A trained StitchVM value costs at most 30 % of a Tweedie value",
        f"{PAPER}, section 4.1: i blocks and a reward's tail against denoiser, decoder and reward",
        "the interval of the ratio of times lies below 0.3; did not hold: above",
        learned.cheap,
    ),
    Claim(
        "At high noise a trained StitchVM is nearer to the value than Tweedie",
        f"{PAPER}, Figure 2; both without the prompt, judged whatever the prompt",
        "its MSE is clearly lower than that of Tweedie with the null text at every noise level "
        "from 0.5 on; did not hold: clearly higher at one",
        learned.better_than_tweedie,
        "a figure without numbers",
        "fig2",
    ),
    Claim(
        "Regressing unit embeddings overrates a cosine reward",
        "the best unit vector is E[e] / |E[e]|, which the loss of Eq. 78 aims at",
        "at the highest noise level its bias is clearly above that of the same model with an "
        "embedding of any length; did not hold: clearly below",
        learned.unit_overrates,
    ),
    Claim(
        "The soft value from finitely many rollouts is biased low",
        "log-mean-exp is concave (Jensen)",
        "at the smallest N, bias clearly below 0 at some noise level; did not hold: clearly above "
        f"at one; {EXACT}",
        judges.soft_low,
    ),
    Claim(
        "Realised clean rewards stand in for the truth",
        "E[r(z_0) | z_t] is what they scatter around",
        "neither bias, nor any difference in MSE to the constant, is clearly different when "
        f"measured against realised rewards; {EXACT}",
        judges.realised_agrees,
    ),
    Claim("Guidance with a stitched value is 3.2 times as fast as classic DPS, at half its memory",
          f"{PAPER}, Table 1", LATER, _untested, "3.2 times; 0.5"),
    Claim("Proposals scored by a stitched value save 33 % of FK steering's cost at equal reward",
          f"{PAPER}, Figure 3", LATER, _untested, "33 %"),
    Claim("Stopping DRaFT at a stitched value saves 22 to 26 % of its GPU hours",
          f"{PAPER}, Table 3", LATER, _untested, "22 to 26 %"),
    Claim("DiffusionNFT with a stitched value needs 2.3 times fewer GPU hours",
          f"{PAPER}, Table 3", LATER, _untested, "2.3 times"),
)  # fmt: skip


def judge(frame: pd.DataFrame) -> list[Verdict]:
    """Every claim about estimators with its verdict and evidence."""
    return judged(CLAIMS, split(frame))


def judged(claims: Iterable[Claim], facets: Iterable[Facet]) -> list[Verdict]:
    """Claims with what some facets say to them."""
    facets, out = list(facets), []
    for claim in claims:
        found = [(facet.world, e) for facet in facets for e in claim.judge(facet)]
        worlds = dict.fromkeys(world for world, _ in found)
        verdicts = {w: verdict([e.held for world, e in found if world == w]) for w in worlds}
        out.append(Verdict(claim, verdicts, [e for _, e in found]))
    return out


def verdict(held: list[bool | None]) -> str:
    """Held in all, did not hold in one, or undecided."""
    if False in held:
        return FAILED
    return OPEN if None in held else HELD
