"""The small how-to world that the embedded corpus and the embedded base model speak of.

`world/*.yaml` holds it: each file is one kind of thing (houseplants, ...), the things of that kind
with what is true of each (`attributes`), the jobs that can be done with any of them, and the
situations that add a step to a job. A step is written once, in the imperative, with `*` before each
verb; `imperative` and `past` read it out. `[runs|ran]` gives both tenses where a rule would not do.

    python -m howto.embedded.world            checks every file and prints what it counts
    python -m howto.embedded.world FILE       also reads the file out, in both tenses
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ruamel.yaml import YAML

from howto.embedded.english import bare, past, sentence, the

FOLDER = Path(__file__).parent / "world"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attribute(_Strict):
    """How a text speaks of one attribute: a question, its answer, and other sentences that say it."""

    ask: str
    tell: str
    tales: list[str] = Field(min_length=2)


class Job(_Strict):
    """Something to be done with a thing: its verb phrase, what it takes, and its steps in order."""

    job: str
    tools: list[str] = Field(min_length=1)
    materials: list[str] = Field(min_length=1)
    steps: list[str] = Field(min_length=4, max_length=6)


class Situation(_Strict):
    """A circumstance named in an intent, and the one step that it adds, first or last."""

    when: str
    first: str | None = None
    last: str | None = None

    @model_validator(mode="after")
    def _one_step(self) -> Situation:
        if (self.first is None) == (self.last is None):
            raise ValueError(f"situation {self.when!r} needs either 'first' or 'last'")
        return self


class Kind(_Strict):
    """A kind of thing: every job can be done with every thing."""

    kind: str
    things: dict[str, dict[str, str]]
    attributes: dict[str, Attribute]
    jobs: list[Job]
    situations: list[Situation]

    @model_validator(mode="after")
    def _attributes_match(self) -> Kind:
        for thing, values in self.things.items():
            if set(values) != set(self.attributes):
                raise ValueError(f"{thing}: attributes {sorted(values)} are not {sorted(self.attributes)}")
        return self


@dataclass(frozen=True)
class Told:
    """One thing of one kind, as the words that fill a fragment's slots."""

    kind: Kind
    thing: str

    def fill(self, fragment: str) -> str:
        """`fragment` with {thing}, {Thing}, {the}, {The}, {name} and the thing's attributes filled in."""
        words = {
            "thing": self.thing,
            "Thing": sentence(self.thing),
            "the": the(self.thing),
            "The": sentence(the(self.thing)),
            "name": bare(self.thing),
            **self.kind.things[self.thing],
        }
        return fragment.format(**words)

    def imperative(self, fragment: str) -> str:
        """`*Cut the shoot` -> `Cut the shoot`."""
        return self.fill(re.sub(r"\[([^|\]]*)\|[^\]]*\]", r"\1", fragment).replace("*", ""))

    def past(self, fragment: str, their: str) -> str:
        """`*Cut your shoot` -> `cut her shoot`: the step as something that a person did."""
        text = re.sub(r"\[[^|\]]*\|([^\]]*)\]", r"\1", fragment)
        text = re.sub(r"\*(\w+)", lambda m: past(m[1]), text)
        text = re.sub(r"\byour\b", their, text)
        text = re.sub(r"\byou\b", {"her": "she", "his": "he"}[their], text)
        return self.fill(text[:1].lower() + text[1:])


def read_world(folder: Path = FOLDER) -> list[Kind]:
    """Every kind in `folder`, in the order of the file names."""
    yaml = YAML(typ="safe", pure=True)
    return [Kind.model_validate(yaml.load(path)) for path in sorted(folder.glob("*.yaml"))]


def _read_out(kind: Kind) -> None:
    things = list(kind.things)
    for number, job in enumerate(kind.jobs):
        told = Told(kind, things[number % len(things)])
        print(f"\nHow do I {told.imperative(job.job)}?   tools: {job.tools}   materials: {job.materials}")
        for count, text in enumerate(job.steps, 1):
            print(f"{count}. {told.imperative(text)}\n     Mara {told.past(text, 'her')}")
    for number, situation in enumerate(kind.situations):
        told = Told(kind, things[number % len(things)])
        step = situation.first or situation.last or ""
        print(f"\n... {situation.when}: {told.imperative(step)}\n     Mara {told.past(step, 'her')}")
    for number, attribute in enumerate(kind.attributes.values()):
        told = Told(kind, things[number % len(things)])
        print("\n" + "\n".join(told.fill(text) for text in [attribute.ask, attribute.tell, *attribute.tales]))


def main(arguments: list[str]) -> None:
    """Check every file; read out the one that is named."""
    kinds = read_world()
    for path in arguments:
        for kind in kinds:
            if Path(path).stem == kind.kind.replace(" ", "_"):
                _read_out(kind)
    for kind in kinds:
        print(
            f"{kind.kind}: {len(kind.things)} things x {len(kind.jobs)} jobs, {len(kind.situations)} situations, "
            f"{len(kind.attributes)} attributes"
        )
    print(f"{sum(len(kind.things) * len(kind.jobs) for kind in kinds)} jobs on things in all")


if __name__ == "__main__":
    main(sys.argv[1:])
