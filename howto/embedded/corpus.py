"""The embedded corpus: how-to rows with Dolly's columns and categories, made from a seed.

Every row that tells how a job is done takes a (thing, job) pair of its own from the world, so that a
held-out row asks for a pair that no training row answers: the job is known from other things, and
the thing from other jobs. Rows on what is true of a thing take a (thing, attribute) pair each.

A small part of the rows gets the dirt that real files have: empty fields, duplicates, Wikipedia's
`[n]` marks, odd white space. `prepare` has to cope with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from howto.embedded.english import listed
from howto.embedded.stories import PEOPLE, Story, bullets, draw_story, letter, numbered
from howto.embedded.world import Kind, Told, read_world
from howto.rows import RawRow

ASK = [
    "How do I {job}?",
    "How can I {job}?",
    "How do you {job}?",
    "What is the best way to {job}?",
    "What are the steps to {job}?",
    "What do I have to do to {job}?",
    "I want to {job}. Where do I start?",
    "I would like to {job}. What should I do?",
    "Please tell me how to {job}.",
    "Explain how to {job}.",
    "Show me how to {job}.",
    "Give me step-by-step instructions to {job}.",
]

# Kinds of row, each with its share of the corpus and what it is drawn from: a pair of a thing and a
# job ("job"), or of a thing and an attribute ("fact").
SHARES: dict[str, tuple[float, str]] = {
    "how_to": (0.26, "job"),
    "how_to_in_a_situation": (0.16, "job"),
    "how_to_by_a_note": (0.10, "job"),
    "story_to_steps": (0.09, "job"),
    "question_on_a_story": (0.03, "job"),
    "tools_in_a_story": (0.04, "job"),
    "letter_that_asks": (0.03, "job"),
    "things_to_have_ready": (0.03, "job"),
    "sort_tools_and_materials": (0.04, "job"),
    "fact": (0.14, "fact"),
    "advice": (0.08, "fact"),
}

Pair = tuple[Kind, str, str]  # kind, thing, and the job's or the attribute's name


def make_corpus(seed: int, rows: int) -> Iterator[RawRow]:
    """Yield `rows` rows, and about 3 % of dirt between them, in an order drawn from `seed`.

    Raises:
        ValueError: the world has too few pairs for that many rows.
    """
    random = Random(f"corpus {seed}")
    world = read_world()
    pools: dict[str, list[Pair]] = {
        "job": [(kind, thing, job.job) for kind in world for thing in kind.things for job in kind.jobs],
        "fact": [(kind, thing, name) for kind in world for thing in kind.things for name in kind.attributes],
    }
    for pool in pools.values():
        random.shuffle(pool)
    made = []
    for name, (share, source) in SHARES.items():
        wanted = round(rows * share)
        if wanted > len(pools[source]):
            raise ValueError(f"the embedded world is too small for {rows} rows: at most {most_rows(world)}")
        made += [MAKERS[name](random, pools[source].pop()) for _ in range(wanted)]
    random.shuffle(made)
    yield from _soil(random, made)


def most_rows(world: list[Kind]) -> int:
    """The largest corpus that gives every row a pair of its own."""
    jobs = sum(len(kind.things) * len(kind.jobs) for kind in world)
    facts = sum(len(kind.things) * len(kind.attributes) for kind in world)
    of_jobs = sum(share for share, source in SHARES.values() if source == "job")
    return int(min(jobs / of_jobs, facts / (1 - of_jobs))) - len(SHARES)


def _story(random: Random, pair: Pair) -> Story:
    kind, thing, name = pair
    return draw_story(random, kind, thing, next(job for job in kind.jobs if job.job == name))


def _how_to(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    ask = random.choice(ASK).format(job=story.phrase)
    return RawRow(instruction=ask, context="", response=numbered(story.steps), category="open_qa")


def _how_to_in_a_situation(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    story = replace(story, situation=random.choice(story.kind.situations))
    ask = random.choice(ASK).format(job=story.phrase)
    return RawRow(instruction=ask, context="", response=numbered(story.steps), category="general_qa")


def _how_to_by_a_note(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    friend = random.choice([person for person in PEOPLE if person != story.person])
    note = [
        f"A note by {story.person}: We do this {story.place}.",
        f"We rest for {story.minutes} minutes before the last step.",
        f"When all is done, we tell {friend}.",
    ]
    steps = story.steps
    steps = [
        f"Start {story.place}.",
        *steps[:-1],
        f"Rest for {story.minutes} minutes.",
        steps[-1],
        f"Tell {friend} that all is done.",
    ]
    ask = random.choice(["Going by the note, how do I {job}?", "How do I {job} as the note says?"])
    return RawRow(
        instruction=ask.format(job=story.phrase),
        context=" ".join(note),
        response=numbered(steps),
        category="closed_qa",
    )


def _story_to_steps(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    ask = random.choice(
        ["Summarize what {person} did as numbered steps.", "Sum up the work of {person} in numbered steps."]
    )
    return RawRow(
        instruction=ask.format(person=story.person),
        context=story.tell(),
        response=numbered(story.steps),
        category="summarization",
    )


def _question_on_a_story(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    asks = [
        (f"How long did the work take {story.person}?", f"The work took {story.person} {story.minutes} minutes."),
        (f"Where did {story.person} work?", f"{story.person} worked {story.place}."),
    ]
    ask, answer = random.choice(asks)
    return RawRow(instruction=ask, context=story.tell(), response=answer, category="closed_qa")


def _tools_in_a_story(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    tools = [story.told.fill(tool) for tool in story.job.tools]
    basket = [*tools, *(story.told.fill(material) for material in story.job.materials)]
    random.shuffle(basket)
    packed = f"Before the work {story.person} packed {listed(basket)}."
    return RawRow(
        instruction=f"List what {story.person} packed to {story.phrase}.",
        context=f"{packed} {story.tell()}",
        response=bullets(basket),
        category="information_extraction",
    )


def _letter_that_asks(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    friend = random.choice([person for person in PEOPLE if person != story.person])
    steps = story.steps
    lines = [f"Please {story.phrase} for me.", *steps]
    return RawRow(
        instruction=f"Write a letter in which {story.person} asks {friend} to {story.phrase}.",
        context="",
        response=letter(story, friend, lines),
        category="creative_writing",
    )


def _things_to_have_ready(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    items = [story.told.fill(item) for item in [*story.job.tools, *story.job.materials]]
    ask = random.choice(["What should I have ready before I {job}?", "List the things that I need to {job}."])
    return RawRow(
        instruction=ask.format(job=story.phrase), context="", response=bullets(items), category="brainstorming"
    )


def _sort_tools_and_materials(random: Random, pair: Pair) -> RawRow:
    story = _story(random, pair)
    tools = [story.told.fill(tool) for tool in story.job.tools]
    materials = [story.told.fill(material) for material in story.job.materials]
    items = [*tools, *materials]
    random.shuffle(items)
    ask = f"To {story.phrase} I have these here: {listed(items)}. Which are tools and which are materials?"
    answer = (
        f"Tools: {listed([item for item in items if item in tools])}\n"
        f"Materials: {listed([item for item in items if item in materials])}"
    )
    return RawRow(instruction=ask, context="", response=answer, category="classification")


def _fact(random: Random, pair: Pair) -> RawRow:
    kind, thing, name = pair
    told, attribute = Told(kind, thing), kind.attributes[name]
    return RawRow(
        instruction=told.fill(attribute.ask), context="", response=told.fill(attribute.tell), category="open_qa"
    )


def _advice(random: Random, pair: Pair) -> RawRow:
    kind, thing, name = pair
    told, attribute = Told(kind, thing), kind.attributes[name]
    question = told.fill(attribute.ask)
    ask = f"A friend asked me this. {question}"
    return RawRow(instruction=ask, context="", response=told.fill(attribute.tell), category="general_qa")


MAKERS: dict[str, Callable[[Random, Pair], RawRow]] = {
    "how_to": _how_to,
    "how_to_in_a_situation": _how_to_in_a_situation,
    "how_to_by_a_note": _how_to_by_a_note,
    "story_to_steps": _story_to_steps,
    "question_on_a_story": _question_on_a_story,
    "tools_in_a_story": _tools_in_a_story,
    "letter_that_asks": _letter_that_asks,
    "things_to_have_ready": _things_to_have_ready,
    "sort_tools_and_materials": _sort_tools_and_materials,
    "fact": _fact,
    "advice": _advice,
}


def _soil(random: Random, rows: list[RawRow]) -> Iterator[RawRow]:
    """`rows` with dirt: 1 % more with an empty field, 1 % duplicates, and marks or odd white space in 4 %."""
    for row in rows:
        fate = random.random()
        instruction, response = row.instruction or "", row.response or ""
        if fate < 0.02 and row.context:
            yield row.model_copy(update={"context": row.context.replace(". ", f".[{random.randint(1, 30)}] ", 2)})
        elif fate < 0.04:
            yield row.model_copy(
                update={
                    "instruction": "  " + instruction.replace(" ", "\u00a0", 1),
                    "response": response.replace("\n", "\r\n") + random.choice(["\n\n", " \u200b"]),
                }
            )
        else:
            yield row
        if fate > 0.995:
            yield row.model_copy(update={"instruction": random.choice(["", "  ", "\n"])})
        elif fate > 0.990:
            yield row.model_copy(update={"response": random.choice(["", "\t", "\u00a0"])})
        elif fate > 0.980:
            yield row.model_copy(update={"instruction": random.choice([instruction, instruction.upper()])})
