"""People of the embedded world, and how a text tells what they did."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from howto.embedded.world import Job, Kind, Situation, Told

PEOPLE = {
    "Mara": "she", "Tom": "he", "Ines": "she", "Oskar": "he", "Leila": "she", "Pavel": "he", "Greta": "she",
    "Hugo": "he", "Nadia": "she", "Emil": "he", "Rosa": "she", "Victor": "he", "Yuki": "she", "Samir": "he",
}  # fmt: skip
PLACES = [
    "on the veranda", "in the shed", "at the kitchen table", "in the yard", "on the balcony", "in the hall",
    "at the workbench", "in the attic", "by the back door", "under the old lamp",
]  # fmt: skip
MINUTES = [15, 20, 25, 30, 35, 40, 45, 50, 55, 70, 80, 90]
JOINS = ["Then", "Next", "After that"]


@dataclass(frozen=True)
class Story:
    """One person does one job with one thing, somewhere, in so many minutes; in a situation, or in none."""

    kind: Kind
    told: Told
    job: Job
    person: str
    place: str
    minutes: int
    situation: Situation | None = None

    @property
    def pronoun(self) -> str:
        """`she` or `he`."""
        return PEOPLE[self.person]

    @property
    def phrase(self) -> str:
        """What is done, as it follows "how to": `repot a fern in the winter`."""
        return self._in_situation(self.told.imperative(self.job.job))

    @property
    def steps(self) -> list[str]:
        """The steps in the imperative, with the one that the situation adds in its place."""
        return [self.told.imperative(fragment) for fragment in self._fragments()]

    def sentences(self) -> list[str]:
        """The steps as sentences in the past, in order."""
        fragments = self._fragments()
        between = [JOINS[number % len(JOINS)] for number in range(1, len(fragments) - 1)]
        joins = ["First", *between, "At last"]
        return [
            f"{join} {self.pronoun} {self._past(fragment)}" for join, fragment in zip(joins, fragments, strict=True)
        ]

    def tell(self) -> str:
        """The whole story in one paragraph."""
        opening = f"{self.person} {self._in_situation(self._past(self.job.job))} {self.place}."
        closing = f"The work took {self.person} {self.minutes} minutes."
        return " ".join([opening, *self.sentences(), closing])

    def _fragments(self) -> list[str]:
        first = [self.situation.first] if self.situation and self.situation.first else []
        last = [self.situation.last] if self.situation and self.situation.last else []
        return [*first, *self.job.steps, *last]

    def _in_situation(self, phrase: str) -> str:
        return f"{phrase} {self.situation.when}" if self.situation else phrase

    def _past(self, fragment: str) -> str:
        return self.told.past(fragment, {"she": "her", "he": "his"}[self.pronoun])


def numbered(steps: list[str]) -> str:
    """`1. ...` to `n. ...`, one step a line."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def bullets(items: list[str]) -> str:
    """`- ...`, one item a line."""
    return "\n".join(f"- {item}" for item in items)


def draw_story(random: Random, kind: Kind, thing: str, job: Job) -> Story:
    """A story of `job` on `thing` with a person, a place and a duration drawn from `random`."""
    return Story(
        kind, Told(kind, thing), job, random.choice(list(PEOPLE)), random.choice(PLACES), random.choice(MINUTES)
    )


def letter(story: Story, friend: str, lines: list[str]) -> str:
    """A short letter from the story's person to `friend`."""
    return "\n".join([f"Dear {friend},", *lines, f"Yours, {story.person}"])
