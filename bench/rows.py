"""What a reader relies on in the rows of a record, task by task; whatever else is there stays.

A row that says less, or says it in other types, would end a table in an error, or make it wrong.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Numbers = list[float | None]
Count = Annotated[int, Field(ge=0, lt=2**63)]  # what no frame can hold is no count
Many = Annotated[int, Field(ge=1, lt=2**63)]
Peak = dict[str, Count | None]
Spent = dict[str, list[float]]
SQUARES = ("mse", "centred_mse", "mse_realised")  # whose roots are shown
Mark = Literal["image_to_text", "text_to_image", "preference", "srcc"]
STEPS = ("guided", "unsteered")  # that `align` times, at least
STAGES = ("blocks", "decode", "reward", "tail", "backward", "rest")
PHASES = ("rollout", "value", "update")
FIGURES = ("reward", "loss", "gradient", "skipped", "old", "kl", "norm", "flat", *PHASES)


class Plain(BaseModel):
    """Plain data without NaN and infinity, which records never hold."""

    model_config = ConfigDict(allow_inf_nan=False)


class Row(Plain):
    """A noise level of the `value` task."""

    sigma: float
    sigma_reference: float
    target: dict[str, Any]
    estimand: dict[str, Any]
    realises: str
    z_digest: str
    latents: Many
    replicates: Many
    nonfinite: Count
    metrics: dict[str, Numbers | None]
    call_seconds: list[float] = Field(min_length=1)
    call_rows: list[Many]
    gradient_seconds: list[float]
    gradient_rows: list[Many]
    peak: Peak | None
    gradient_peak: Peak | None
    calls: dict[str, float]
    truth_members: float | None = None
    truth_floor: float | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _alike(call_seconds=self.call_seconds, call_rows=self.call_rows)
        _alike(gradient_seconds=self.gradient_seconds, gradient_rows=self.gradient_rows)
        _alike(**{name: x for name, x in self.metrics.items() if x is not None})
        for name in SQUARES:
            if any(x is not None and x < 0 for x in self.metrics.get(name) or ()):
                raise ValueError(f"expected {name} of at least 0, got less")
        for name in ("target", "estimand"):
            if not isinstance(getattr(self, name).get("text"), str):
                raise ValueError(f"expected {name} with its text")
        return self


class TestedRow(Plain):
    """The same of embeddings that were tested."""

    sigma: float
    sigma_reference: float
    z_digest: str
    length: float
    marks: dict[Mark, list[float] | list[tuple[float, float]]]
    call_seconds: list[float]
    call_rows: list[Many]
    calls: dict[str, float]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _alike(call_seconds=self.call_seconds, call_rows=self.call_rows)
        return self


class InterfaceRow(Plain):
    """The same of a pair (i, j)."""

    i: Count
    j: Count
    picked: list[str]
    loss: float
    normalised: float
    r2: float
    held_loss: float
    held_normalised: float
    held_r2: float
    cost: float
    seconds: float
    clean_recall: float
    metrics: dict[str, list[float]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("error", "recall"):  # of pictures; of pictures and captions
            _holds(self.metrics, name, f"{name}_before")
            _alike(**{k: x for k, x in self.metrics.items() if k.startswith(name)})
        return self


class CostRow(Plain):
    """The same of two things timed in turns."""

    what: str
    batch: Many
    against: str
    unit: str
    seconds: list[float]
    against_seconds: list[float]
    flops: Count | None
    against_flops: Count | None
    peak: Peak | None
    against_peak: Peak | None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for peak in (self.peak, self.against_peak):
            if peak is not None:
                _holds(peak, "live")
        return self


class SamplesRow(Plain):
    """Samples of `align`: unsteered ones, of a trial, or those that count."""

    phase: Literal["unsteered tune", "unsteered", "tune", "eval"]
    strength: float | None
    metrics: dict[str, Numbers]
    diverged: str | None = None
    lam: float | None = None
    spread: float | None = None
    samples: Many | None = None
    nonfinite: Count | None = None
    feasible: bool | None = None
    within: float | None = None
    prompts: list[str] | None = None
    kinds: list[str] | None = None
    seconds: list[float] | None = None
    rows: list[Many] | None = None
    calls: dict[str, float] | None = None
    log: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.phase == "tune" and self.strength is None:
            raise ValueError("expected a strength of a trial")
        if self.diverged is None:
            _given(self, "samples", "prompts", "kinds", "seconds", "rows", "calls")
            _alike(seconds=self.seconds, rows=self.rows)
            _alike(prompts=self.prompts, kinds=self.kinds, **self.metrics)
        return self


class ErrorRow(Plain):
    """An estimator of `align` held against the truth."""

    phase: Literal["error"]
    sigma: float
    metrics: dict[str, Numbers]


class StepRow(Plain):
    """A guided step of `align` beside others."""

    phase: Literal["cost"]
    batch: Many
    unit: str
    step_seconds: Spent
    flops: dict[str, Count]
    peaks: dict[str, Peak]
    calls: dict[str, float]
    stages: dict[str, Spent] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _holds(self.step_seconds, *STEPS)
        for found in (self.flops, self.peaks):
            _holds(found, *self.step_seconds)
        for peak in self.peaks.values():
            _holds(peak, "live")
        if self.stages:
            _holds(self.stages, "guided", "unsteered")
            for spent in self.stages.values():
                _holds(spent, *STAGES)
                _alike(**spent)
        _alike(**self.step_seconds)
        return self


class WalkRow(Plain):
    """The kinds of steps that a sample of `align` is made of, beside an unsteered one."""

    phase: Literal["walk"]
    unit: str
    kinds: dict[str, Count]
    kind_seconds: Spent
    flops: dict[str, Count]
    peaks: dict[str, Peak]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for found in (self.kind_seconds, self.flops, self.peaks):
            _holds(found, "unsteered", *self.kinds)
        _alike(**self.kind_seconds)
        return self


class Point(Plain):
    """What a run of `train` had come to at a step."""

    step: Count
    seconds: float
    samples: Count
    metrics: dict[str, Numbers]


class RunRow(Plain):
    """A run of `train`, or a trial of it."""

    phase: Literal["trial", "pilot", "run"]
    rate: float
    curve: list[Point]
    diverged: str | None = None
    prompts: list[str] | None = None
    kinds: list[str] | None = None
    records: dict[str, Numbers] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.diverged is None:
            _given(self, "prompts", "kinds", "records")
            _holds(self.records or {}, *FIGURES)
            for point in self.curve:
                _alike(prompts=self.prompts, kinds=self.kinds, **point.metrics)
            last = max((point.step for point in self.curve), default=None)
            if last is None:
                raise ValueError("expected a curve, got no point of it")
            short = [name for name, x in (self.records or {}).items() if len(x) < last]
            if short:
                raise ValueError(f"expected records of {last} steps, got fewer of {short[0]}")
        return self


class TrainStepRow(Plain):
    """A training step of `train` beside one of the published method."""

    phase: Literal["cost"]
    rate: float
    unit: str
    step_seconds: dict[str, Spent]
    peaks: dict[str, Peak]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for found in (self.step_seconds, self.peaks):
            _holds(found, "this", "published")
        for spent in self.step_seconds.values():
            _holds(spent, *PHASES)
            _alike(**spent)
        for peak in self.peaks.values():
            _holds(peak, "live")
        return self


def _given(row: BaseModel, *names: str) -> None:
    """Refuse a row that lacks something."""
    lacking = [name for name in names if getattr(row, name) is None]
    if lacking:
        raise ValueError(f"expected {lacking[0]}, got none")


def _holds(found: Mapping[str, Any], *names: str) -> None:
    """Refuse a mapping that lacks something."""
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ValueError(f"expected {lacking[0]!r}, got {sorted(found)}")


def _alike(**lists: Any) -> None:  # noqa: ANN401 - lists of anything
    """Refuse lists of different lengths."""
    lengths = {name: len(x) for name, x in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected lists of one length, got {lengths}")


class _Rows(BaseModel):
    rows: list[Row]


class _TestedRows(BaseModel):
    rows: list[TestedRow]


class _InterfaceRows(BaseModel):
    rows: list[InterfaceRow]


class _CostRows(BaseModel):
    rows: list[CostRow]


class _AlignRows(BaseModel):
    rows: list[Annotated[SamplesRow | ErrorRow | StepRow | WalkRow, Field(discriminator="phase")]]


class _TrainRows(BaseModel):
    rows: list[Annotated[RunRow | TrainStepRow, Field(discriminator="phase")]]

    @model_validator(mode="after")
    def _ran(self) -> Self:
        if self.rows and not any(row.phase in {"pilot", "run", "cost"} for row in self.rows):
            raise ValueError("expected a run or a timed step, got none")
        return self


ROWS: dict[str, type[BaseModel]] = {
    "value": _Rows,
    "robustness": _TestedRows,
    "interface": _InterfaceRows,
    "cost": _CostRows,
    "align": _AlignRows,
    "train": _TrainRows,
}
