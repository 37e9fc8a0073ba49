"""What counts as a numbered list, and what as steps in any form."""

import pytest

from howto.core.step_lists import is_numbered, is_procedural, is_well_numbered, step_numbers


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("1. Go.\n2. Stop.", True),
        ("1) Go.\n2) Stop.", True),
        (" 1. Take 2. eggs\n\n 2. Fry.", True),
        ("1. \u6253\u5f00\u3002\n2. \u5173\u95ed\u3002", True),
        ("1.\u6253\u5f00\u3002\n2\u3001\u5173\u95ed\u3002\n3\uff0e\u597d\u3002", True),
        ("1.5\n2.5", False),
        ("1. Go.\n3. Stop.", False),
        ("2. Go.\n3. Stop.", False),
        ("1. Go.\n1. Stop.", False),
        ("First:\n1. Go.\n2. Stop.", False),
        ("1. Go.\n2. Stop.\nDone.", False),
        ("Go, then stop.", False),
        ("", False),
        ("1.", False),
    ],
)
def test_only_a_list_from_1_to_n_without_a_gap_is_well_numbered(text: str, well: bool) -> None:
    assert is_well_numbered(text) is well
    assert is_procedural(text) or not is_numbered(text)


def test_a_reference_of_one_step_or_of_prose_is_not_numbered() -> None:
    assert is_numbered("1. Go.\n2. Stop.")
    assert not is_numbered("1. Go.")
    assert not is_numbered("In 1990. It was.\n2. no")
    assert not is_numbered("- Go.\n- Stop.")


@pytest.mark.parametrize(
    "text",
    [
        "1. Go.\n2. Stop.",
        "Do this:\n\n1) Go.\n   Slowly.\n2) Stop.\nDone.",
        "(1) Go.\n(2) Stop.",
        "1: Go.\n2: Stop.",
        "1 - Go.\n2 - Stop.",
        "1 \u2013 Go.\n2 \u2013 Stop.",
        "1.Go.\n2.Stop.",
        "1. 2 eggs\n2. 3 cups of flour",
        "**1.** Go.\n**2.** Stop.",
        "**1. Go**\nSlowly.\n\n**2. Stop**",
        "### 1. Go\n\n### 2. Stop",
        "Step 1: Go.\nStep 2: Stop.",
        "**Step 1:** Go.\n**Step 2:** Stop.",
        "STEP 1\nGo.\nSTEP 2\nStop.",
        "Step one is to go. Step two is to stop.",
        "Here is how. 1. Go. 2. Look. 3. Stop.",
        "Do this: (1) go; (2) look; (3) stop.",
        "- Go.\n- Stop.",
        "Bring:\n* an egg\n* a pan",
        "\u2022 Go.\n\u2022 Stop.",
        "-Go.\n-Stop.",
        "First, go. Then stop.",
        "first go.\nfinally stop.",
        "Firstly, go slowly. You may look. After that, stop.",
        "It is easy:\n\nFirst you go.  Next, you stop.",
        "To start, go. Next, stop.",
        "Begin by going. Afterwards, stop.",
        "First, go. Second, look. Third, stop.",
    ],
)
def test_lists_and_words_of_order_are_procedural(text: str) -> None:
    assert is_procedural(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Go, then stop.",
        "1. Go.\nDone.",
        "- Go.\nDone.",
        "2. Go.\n3. Stop.",
        "1.5 cups\n2.5 cups",
        "1:30 go\n2:30 stop",
        "1 - 0\n2 - 1",
        "1990 - It was.\n1991 - It is.",
        "10. Ten\n20. Twenty",
        "It grew by 1. The 2. league and the 4. league",
        "The 1. league, the 2. league and 3.5 more",
        "It has a1. parts, b2. parts and c3. parts",
        "-5 degrees\n-7 degrees",
        "---\nText\n---",
        "* * *\nText\n* * *",
        "**Bold**\n**Bolder**",
        "a - b\nc - d",
        "It is a step 1 thing.",
        "He took the first step. He was second then.",
        "The first time is hard. Then it is easy.",
        "First and foremost, it is good. Finally, it is new.",
        "First, it is good. Second, it is new.",
        "First, it is good. Third, it is new.",
        "First, it rained. Next year, it snowed.",
        "Then it rained. First, it snowed.",
        "Second, it is good. Third, it is new.",
        "At first it rained. Then it snowed.",
    ],
)
def test_prose_numbers_and_single_points_are_not_procedural(text: str) -> None:
    assert not is_procedural(text)


@pytest.mark.parametrize("piece", ["\n", "\n ", " ", "1. a\n", "- a\n", "First, ", "then. ", "step 1 "])
def test_long_texts_take_no_longer_than_their_length(piece: str) -> None:
    """A search that starts again at each of a million line ends would take hours."""
    text = piece * (1_000_000 // len(piece))
    assert is_procedural(text) == (piece == "- a\n")
    assert len(step_numbers(text)) == text.count("1.")
