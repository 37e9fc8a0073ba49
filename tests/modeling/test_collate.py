"""Only the response is learned, rows in a batch are independent, and answers are never cut."""

from pathlib import Path

import pytest
import torch

from howto.core.schema import Row, read_rows
from howto.modeling.collate import collate, encode, pack
from howto.modeling.loading import load_chat
from tests.support.models import example_rows

CPU = torch.device("cpu")
ROWS = example_rows(12)


def test_labels_are_the_response_and_not_the_padding() -> None:
    batch = collate(ROWS, ROWS[0].completion[-1], CPU)  # padding of a token that is also a label
    length = batch.input_ids.shape[1]
    expected = [
        length * n + position - 1 for n, row in enumerate(ROWS) for position in range(len(row.prompt), len(row))
    ]
    assert batch.label_positions.tolist() == expected
    assert batch.labels.tolist() == [token for row in ROWS for token in row.completion]


@pytest.mark.parametrize(("share_prefix", "multiple"), [(False, 1), (True, 1), (False, 128)])
def test_labels_of_a_pack_are_those_of_its_rows(share_prefix: bool, multiple: int) -> None:
    packed = pack(ROWS, CPU, share_prefix=share_prefix, multiple=multiple)
    ids = packed.input_ids.flatten().tolist()
    assert len(ids) % multiple == 0
    assert packed.labels.tolist() == [token for row in ROWS for token in row.completion]
    assert [ids[position + 1] for position in packed.label_positions.tolist()] == packed.labels.tolist()


def test_a_row_that_is_too_long_loses_context_or_is_left_out_and_keeps_its_answer(finished: Path) -> None:
    chat = load_chat(finished / "models/base")
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)
    full = {example.id: example for example in encode(chat, rows, 100_000, shorten=False)}
    limit = sorted(map(len, full.values()))[len(rows) // 2]
    dropped, shortened = (encode(chat, rows, limit, shorten=shorten) for shorten in (False, True))
    assert {example.id for example in dropped} == {id for id, example in full.items() if len(example) <= limit}
    assert len(dropped) < len(shortened) < len(rows)
    with_context = {row.id for row in rows if row.context}
    for example in shortened:
        assert len(example) <= limit and example.completion == full[example.id].completion
        is_cut = example.is_shortened
        assert is_cut == (example.prompt != full[example.id].prompt) and (not is_cut or example.id in with_context)
