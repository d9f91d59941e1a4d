"""What another program said of exported pictures, as a further judge beside their records.

    results.jsonl    GenEval's, a line each: {"filename": ..., "correct": true, "tag": ..., ...}
    scores.jsonl     any other's: {"file": ..., "score": 0.3}
    scores.csv       the same as columns

A file is known by the end of its path, as `bench.exported` wrote it.  ImageReward is one such
program: its package cannot be installed beside transformers 5.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from pydantic import AliasChoices, BaseModel, Field, TypeAdapter

from bench.datasets.files import formed, parsed_lines, sha256, table
from bench.exported import picture
from bench.rescore import PHASES
from bench.store import Store

PARTS = 6  # of the end of a path: cell, attempt, phase, prompt, "samples", sample
COLUMNS = ["cell", "attempt", "phase", "prompt", "kind", "file", "score"]


class Said(BaseModel):
    """One picture's score; of GenEval's, 1 where it is correct and 0 where not."""

    file: str = Field(validation_alias=AliasChoices("file", "filename"))
    score: float = Field(validation_alias=AliasChoices("score", "correct"), allow_inf_nan=False)
    prompt: str | None = None
    tag: str = ""


def read(path: Path) -> list[Said]:
    """The scores of a file.

    Raises:
        ValueError: if it is cut off, of another form, or says nothing.
    """
    if path.suffix == ".jsonl":
        return parsed_lines(path, TypeAdapter(Said))
    form, rows = TypeAdapter(Said), table(path, ("file", "score"))
    found = [
        formed(form, {"file": file, "score": score}, f"{path}: {file}") for file, score in rows
    ]
    if not found:
        raise ValueError(f"expected scores in {path}, got none")
    return found


def joined(store: Store, paths: Sequence[Path]) -> pd.DataFrame:
    """Scores beside the kept samples that they are of, one row a picture.

    Args:
        store: Whose samples were exported.
        paths: Files of scores, which may be of some phases of some cells.

    Returns:
        Columns `COLUMNS`: the prompt's text, the picture's path, the kind as GenEval tags it.

    Raises:
        ValueError: for a picture that is not the store's, stands twice or has another prompt; or
            if others of its phase have no score.
    """
    prompts, rows = pictures(store), {}
    for path in paths:
        for said in read(path):
            key = Path(said.file).parts[-PARTS:]
            if key in rows:
                raise ValueError(f"expected every picture once, got {said.file} again in {path}")
            prompt = _prompt_of(said, prompts.get(key), path)
            rows[key] = (*key[:3], prompt, said.tag, "/".join(key), said.score)
    begun = {key[:3] for key in rows}
    if missing := [key for key in prompts if key[:3] in begun and key not in rows]:
        raise ValueError(
            f"expected scores of all pictures of {'/'.join(missing[0][:3])}, got none of "
            f"{'/'.join(missing[0])} ({len(missing)} are missing)"
        )
    return pd.DataFrame(rows.values(), columns=COLUMNS).sort_values("file", ignore_index=True)


def _prompt_of(said: Said, prompt: str | None, path: Path) -> str:
    """The prompt of a picture that is the store's.

    Raises:
        ValueError: if it is not, or is said to be of another prompt.
    """
    if prompt is None:
        raise ValueError(
            f"expected pictures that `stitchbench images export` wrote of this store, by paths "
            f"that end in CELL/ATTEMPT/PHASE/00000/samples/00000.png, got {said.file} in {path}"
        )
    if said.prompt not in {None, prompt}:
        raise ValueError(
            f"expected {said.file} to be of {prompt!r}, got {said.prompt!r} in {path}"
        )
    return prompt


def pictures(store: Store) -> dict[tuple[str, ...], str]:
    """Prompts of all pictures of a store's samples, by the parts of their paths."""
    return {
        (record["id"], record["attempt"], row["phase"], *picture(k, n).split("/")): prompt
        for record in store.records()
        if record["spec"]["task"] == "align"
        for row in record["rows"]
        if row["phase"] in PHASES
        for k, prompt in enumerate(row["prompts"])
        for n in range(row["samples"] // len(row["prompts"]))
    }


def keep(store: Store, judge: str, frame: pd.DataFrame, paths: Iterable[Path]) -> int:
    """Put scores beside the records; those of other phases that are there already stay.

    Args:
        store: Where.
        judge: What tables call whoever scored.
        frame: As `joined` made it.
        paths: Where it is from: their digest is kept.

    Returns:
        How many attempts have them.
    """
    digest = sha256(b"".join(path.read_bytes() for path in paths))[:16]
    attempts = frame.groupby(["cell", "attempt"])
    for names, part in attempts:
        cell, attempt = map(str, names)
        had = store.judges(cell, attempt).get(judge, {"scores": {}})["scores"]
        scores = {phase: _by_prompt(of) for phase, of in part.groupby("phase")}
        about = {"judge": judge, "source": digest, "scores": had | scores}
        store.add_judge(cell, attempt, judge, about)
    return len(attempts)


def _by_prompt(part: pd.DataFrame) -> list[list[float]]:
    """A list for every prompt, in the order of the pictures."""
    folders = part["file"].str.rsplit("/", n=2).str[0]
    return [list(map(float, one)) for _, one in part["score"].groupby(folders)]


def summary(frame: pd.DataFrame) -> Iterator[str]:
    """Means of each cell's phase; of kinds, as GenEval sums up: overall is the mean of theirs."""
    for (cell, _, phase), part in frame.groupby(["cell", "attempt", "phase"]):
        kinds = part.groupby("kind", sort=False)["score"].mean()
        said = "".join(f"  {kind} {mean:.3f}" for kind, mean in kinds.items() if kind)
        yield f"{cell} {phase:9} {len(part)} pictures  overall {kinds.mean():.4f}{said}"
