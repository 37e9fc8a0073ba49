"""`howto preview` shows what training uses, before any training."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from howto.core.schema import Row, read_rows
from howto.modeling.collate import encode
from howto.modeling.loading import load_chat
from howto.tools.cli import main
from howto.tools.preview import _pieces
from tests.support.in_process import edit_params, run_here


def test_it_shows_text_tokens_and_lengths_of_the_shortest_and_the_longest_row(workplace: Path) -> None:
    shutil.rmtree(workplace / "models/adapter")
    chat, rows = load_chat(workplace / "models/base"), read_rows(workplace / "data/prepared/train.jsonl", Row)
    examples = sorted(encode(chat, rows, 512, shorten=True), key=len)
    done = run_here(main, workplace, "preview", "--rows", "2")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("\n", " ")
    for example in (examples[0], examples[-1]):
        row = next(row for row in rows if row.id == example.id)
        assert f"Row {row.id}: {len(example.prompt)} tokens of prompt, {len(example.completion)} learnt" in shown
        assert row.output.replace("\n", " ") in shown
        pieces = chat.tokenizer.convert_ids_to_tokens([*example.prompt, *example.completion])
        assert all(piece in shown for piece in pieces)
    assert f"{len(rows)} of {len(rows)} training rows: {len(examples[0])} to {len(examples[-1])} tokens" in shown
    assert "</s> ends an answer and is learnt" in shown


def test_it_says_what_a_row_lost_and_which_rows_are_left_out(workplace: Path) -> None:
    path = workplace / "data/prepared/train.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    long = {**row, "id": "long", "input": f"How?\n\n{'word ' * 600}end", "context": f"{'word ' * 600}end"}
    chat = {**row, "id": "chat", "input": "And then?", "context": ""}
    chat["history"] = [{"role": role, "content": "word " * 100} for role in ("user", "assistant") * 2]
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, long, chat)), encoding="utf-8")
    edit_params(workplace, "max_length: 512", "max_length: 600")
    done = run_here(main, workplace, "preview")
    shown = " ".join(done.stdout.split())
    assert "of 601 words of its context" in shown and "it lost 2 of 4 earlier turns" in shown
    assert "3 of 3 training rows" in shown and "2 shortened, 0 too long" in shown
    edit_params(workplace, "too_long: shorten", "too_long: drop")
    assert "1 of 3 training rows" in " ".join(run_here(main, workplace, "preview").stdout.split())
    edit_params(workplace, "max_length: 600", "max_length: 16")
    done = run_here(main, workplace, "preview")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "train.max_length" in done.stderr


def test_byte_level_tokens_are_shown_as_the_characters_that_they_encode() -> None:
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    pound = "£".encode().decode("latin-1")  # as two characters, the names of its bytes
    bpe = Tokenizer(models.BPE({name: at for at, name in enumerate([*names, pound])}, [(pound[0], pound[1])]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    chat: Any = SimpleNamespace(tokenizer=tokenizer)
    assert _pieces(chat, tokenizer("5 £\né").input_ids) == "5 Ġ £ Ċ Ã ©"
