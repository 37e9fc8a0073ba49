"""What the embedded base model reads before it is fine-tuned: plain prose of the embedded world.

Portraits of things, stories, letters, cards from a handbook and tables of contents: the words of the world
and what is true in it, never a question with its answer and never numbered steps. A part of the (thing, job)
pairs (`PAIRS`) is spoken of; of the others the model reads nothing but what is true of the thing and
how the job is done with other things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from howto.embedded.english import listed, sentence
from howto.embedded.stories import PEOPLE, Story, bullets, draw_story, letter, numbered
from howto.embedded.world import Kind, Told, read_world

PAIRS = 0.5  # share of the (thing, job) pairs that the reading speaks of


def make_reading(seed: int, number: int) -> Iterator[str]:
    """Yield the documents of pass `number`: `seed` draws the pairs, both draw the words and the order."""
    random, pairs = Random(f"reading {seed} {number}"), Random(f"pairs {seed}")
    documents: list[str] = []
    for kind in read_world():
        documents += _contents(random, kind)
        for thing in kind.things:
            documents += _portraits(random, kind, thing)
            for job in kind.jobs:
                story = draw_story(random, kind, thing, job)
                if pairs.random() < PAIRS:
                    situation = random.choice(kind.situations)
                    documents += [_about(random, story), _about(random, replace(story, situation=situation))]
    random.shuffle(documents)
    yield from documents


def _portraits(random: Random, kind: Kind, thing: str) -> list[str]:
    """Everything that is true of a thing, told three times in different words and order."""
    told = Told(kind, thing)
    portraits = []
    for version in range(3):
        lines = []
        for attribute in kind.attributes.values():
            ways = [attribute.tell, *attribute.tales]
            lines.append(sentence(told.fill(ways[version])))
        random.shuffle(lines)
        portraits.append(" ".join(lines))
    return portraits


def _about(random: Random, story: Story) -> str:
    """A text about one job done once, in one of the forms below."""
    (form,) = random.choices(list(FORMS), list(FORMS.values()))
    return form(random, story)


def _story(random: Random, story: Story) -> str:
    return story.tell()


def _story_told_twice(random: Random, story: Story) -> str:
    return f"{story.tell()} {_other(random, story)} told it again. {story.tell()}"


def _story_and_card(random: Random, story: Story) -> str:
    return f"{story.tell()} {_other(random, story)} wrote it down. {_card(random, story)}"


def _story_and_bag(random: Random, story: Story) -> str:
    items = _items(random, story)
    packed = f"Before the work {story.person} packed {listed(items)}."
    return f"{packed} {story.tell()} In the bag of {story.person} were:\n{bullets(items)}"


def _card_and_box(random: Random, story: Story) -> str:
    tools = listed([story.told.fill(tool) for tool in story.job.tools])
    materials = listed([story.told.fill(material) for material in story.job.materials])
    needs = f"It takes {listed(_items(random, story))}."
    return f"{_card(random, story)} {needs}\nTools: {tools}\nMaterials: {materials}"


def _letter(random: Random, story: Story) -> str:
    other = _other(random, story)
    text = letter(story, other, [f"Here is how I {story.phrase}.", *story.steps])
    return f"{story.person} wrote to {other} on how to {story.phrase}.\n{text}"


def _card(random: Random, story: Story) -> str:
    """The steps of a job as a handbook has them: running text, in the imperative."""
    words = {"job": story.phrase, "person": story.person, "place": story.place}
    opening = random.choice(OPENINGS).format(other=_other(random, story), **words)
    return " ".join([opening, *story.steps])


def _note(random: Random, story: Story) -> str:
    """A note on the work, and what came of it."""
    other = _other(random, story)
    return (
        f"A note by {story.person}: We do this {story.place}. We rest for {story.minutes} minutes before the last "
        f"step. When all is done, we tell {other}. {_card(random, story)} So {story.person} began {story.place}, "
        f"rested for {story.minutes} minutes and told {other}."
    )


def _contents(random: Random, kind: Kind) -> list[str]:
    """Tables of contents, as a book about this kind of thing would have them."""
    tables = []
    for _ in range(12):
        chapters = random.sample(list(kind.things), random.randint(3, 9))
        tables.append(f"Contents of a book\n{numbered([f'{sentence(chapter)}.' for chapter in chapters])}")
    return tables


def _items(random: Random, story: Story) -> list[str]:
    """What the job takes, in any order."""
    items = [story.told.fill(item) for item in [*story.job.tools, *story.job.materials]]
    random.shuffle(items)
    return items


def _other(random: Random, story: Story) -> str:
    return random.choice([person for person in PEOPLE if person != story.person])


OPENINGS = [
    "How to {job}.",
    "This is how to {job}.",
    "On a card {place} stood how to {job}.",
    "{person} wanted to {job}.",
    "{person} once told us how to {job}.",
    "{person} asked {other} how to {job}.",
    "{person} and {other} sat {place} and spoke of the best way to {job}.",
    "It was a long day, and {person} still had to {job} {place}.",
    "Whoever wants to {job} needs some time and should do it {place}.",
    "A good way to {job} is known to {person}, who learnt it {place}.",
    "The steps to {job} are easy, said {other}, and {person} wrote them down.",
    "I would like to {job}, said {person} to {other}.",
]

FORMS = {
    _story: 0.12,
    _card: 0.30,
    _story_told_twice: 0.10,
    _story_and_card: 0.16,
    _story_and_bag: 0.08,
    _card_and_box: 0.08,
    _note: 0.08,
    _letter: 0.08,
}
