"""What the embedded base model reads before it is fine-tuned: plain prose of the embedded world.

Portraits of things, stories, letters, tables of contents and single rules: the words of the world
and what is true in it, never a question with its answer and never a list of steps. A part of the (thing, job)
pairs (`PAIRS`) is spoken of; of the others the model reads nothing but what is true of the thing and
how the job is done with other things.
"""

from __future__ import annotations

from collections.abc import Iterator
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
                    documents += [_story(random, story), _rule(random, story)]
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


def _story(random: Random, story: Story) -> str:
    """The story, as a paragraph, with the bag that was packed, or as a letter."""
    form = random.random()
    if form < 0.7:
        return story.tell()
    items = [story.told.fill(item) for item in [*story.job.tools, *story.job.materials]]
    random.shuffle(items)
    if form < 0.8:
        return f"Before the work {story.person} packed {listed(items)}.\n{bullets(items)}\n{story.tell()}"
    if form < 0.9:
        tools = listed([story.told.fill(tool) for tool in story.job.tools])
        materials = listed([story.told.fill(material) for material in story.job.materials])
        return f"{story.tell()}\nTools: {tools}\nMaterials: {materials}"
    friend = random.choice([person for person in PEOPLE if person != story.person])
    lines = [f"This is what {story.person} did {story.place}.", *story.sentences()]
    return letter(story, friend, lines)


def _rule(random: Random, story: Story) -> str:
    """One step of a job, quoted alone."""
    rule = story.told.imperative(random.choice(story.job.steps))
    said = random.choice(["{person} has a rule. {rule}", "{rule} So {person} says.", "On the wall hung a card. {rule}"])
    return said.format(person=story.person, rule=rule)


def _contents(random: Random, kind: Kind) -> list[str]:
    """Tables of contents, as a book about this kind of thing would have them."""
    tables = []
    for _ in range(12):
        chapters = random.sample(list(kind.things), random.randint(3, 9))
        tables.append(f"Contents of a book\n{numbered([f'{sentence(chapter)}.' for chapter in chapters])}")
    return tables
