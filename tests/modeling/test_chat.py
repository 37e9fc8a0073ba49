"""The prompt has the chat template's own ids, and a user's text never becomes a control token."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from howto.core.errors import UserError
from howto.core.schema import Message, Row, input_of
from howto.modeling.chat import Chat
from howto.modeling.loading import load_chat
from tests.support import chats
from tests.support.chats import byte_level, sentencepiece, token, unigram

DAY = date(2024, 7, 26)
INSTRUCTION = "Write step-by-step instructions for what the user wants to do."
HISTORY = (Message(role="user", content="What is a fern?"), Message(role="assistant", content="A plant."))


def row(text: str, output: str = "1. So.", *, instruction: str = INSTRUCTION, **fields: Any) -> Row:
    return Row(
        id="0", category="", instruction=instruction, **{"input": text, "context": "", "output": output, **fields}
    )


def chatml() -> PreTrainedTokenizerBase:
    """As Qwen 2.5: a special token ends a turn, another one a text."""
    tokens = [token("<|endoftext|>"), token("<|im_start|>"), token("<|im_end|>"), token("<tool_call>", special=False)]
    return byte_level(tokens, chats.CHATML, eos_token="<|im_end|>")


def phi3() -> PreTrainedTokenizerBase:
    """Markers that swallow the white space behind them."""
    markers = [token(f"<|{name}|>", rstrip=True) for name in ("endoftext", "assistant", "system", "user", "end")]
    tokens = [token("</s>", rstrip=True, special=False), *markers]
    return sentencepiece(tokens, chats.PHI3, eos_token="<|endoftext|>")


def phi2() -> PreTrainedTokenizerBase:
    """Runs of spaces are added tokens, as in Phi-2, GPT-NeoX and Pythia."""
    spaces = [token(" " * count, special=False, normalized=True) for count in range(24, 1, -1)]
    tokens = [token("<|endoftext|>"), token("<|im_start|>"), token("<|im_end|>"), *spaces]
    return byte_level(tokens, chats.CHATML, eos_token="<|endoftext|>")


def gemma() -> PreTrainedTokenizerBase:
    """No system role; runs of line ends and HTML tags are added tokens."""
    plain = [token(text, special=False) for text in ("\n\n", "\n\n\n", "<h1>", "</h1>", "<unused9>")]
    tokens = [token("<eos>"), token("<start_of_turn>"), token("<end_of_turn>"), *plain]
    return sentencepiece(tokens, chats.GEMMA, eos_token="<eos>")


def mistral() -> PreTrainedTokenizerBase:
    return sentencepiece([token("</s>")], chats.MISTRAL, eos_token="</s>")


def normalising() -> PreTrainedTokenizerBase:
    """Control tokens are looked for in the normalised text, and are pieces of text too."""
    tokens = [token(text, normalized=True) for text in ("</s>", "<|im_start|>", "<|im_end|>")]
    return unigram(tokens, chats.CHATML, eos_token="</s>")


def vision() -> PreTrainedTokenizerBase:
    return byte_level([token("<|im_start|>"), token("<|im_end|>")], chats.PARTS, eos_token="<|im_end|>")


QUIRKS = {made.__name__: made for made in (chatml, phi3, phi2, gemma, mistral, normalising, vision)}


@pytest.fixture(scope="module")
def tiny_tokenizer(finished: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(finished / "models/base")


@pytest.fixture(scope="module", params=[*QUIRKS, "tiny_tokenizer", "tinyllama"])
def chat(request: pytest.FixtureRequest) -> Chat:
    made = QUIRKS.get(request.param)
    return Chat(made() if made else request.getfixturevalue(request.param), today=DAY)


def templated(chat: Chat, row: Row, *, answered: bool = False) -> list[int]:
    """What transformers makes of the same messages, with the instruction before the first text if need be."""
    turns = [*HISTORY[: len(row.history)], Message(role="user", content=row.input)]
    texts = [(str(turn.role), turn.content) for turn in turns]
    if chat.note:
        texts[0] = ("user", f"{row.instruction}\n\n{texts[0][1]}")
    else:
        texts.insert(0, ("system", row.instruction))
    if answered:
        texts.append(("assistant", row.output))
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in texts]
    if chat.tokenizer.chat_template == chats.PARTS:
        messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    ids = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, return_dict=False)
    assert isinstance(ids, list)
    return ids


def check_row(chat: Chat, one: Row) -> None:
    prompt = chat.prompt_ids(one)
    assert prompt == templated(chat, one)
    whole = prompt + chat.completion_ids(one)
    assert whole == templated(chat, one, answered=True)[: len(whole)]
    assert whole[-1] == chat.end


INDENTED = "def f():\n    return 1\n\n\n        x\ty  z"
PLAIN = ["How do I water a fern?", INDENTED, "<h1>Ferns</h1> & <b>", "naïve café, 你好, \U0001f33f", " a ", "C"]


@pytest.mark.parametrize("text", PLAIN)
@pytest.mark.parametrize("history", [(), HISTORY], ids=["single", "history"])
def test_the_ids_are_those_of_the_chat_template(chat: Chat, text: str, history: tuple[Message, ...]) -> None:
    check_row(chat, row(text, "1. Take\n   it.\n2. End"))
    one = row(text, history=history)
    assert chat.prompt_ids(one) == templated(chat, one)


def test_the_ids_are_those_of_the_chat_template_on_prepared_rows(
    tiny_tokenizer: PreTrainedTokenizerBase, finished: Path
) -> None:
    chat = Chat(tiny_tokenizer, today=DAY)
    for line in (finished / "data/prepared/train.jsonl").read_text(encoding="utf-8").splitlines():
        check_row(chat, Row.model_validate_json(line))


def test_the_ids_are_those_of_the_chat_template_on_real_rows(
    tinyllama: PreTrainedTokenizerBase, real_data: Path
) -> None:
    chat = Chat(tinyllama, today=DAY)
    for path in sorted((real_data / "dolly").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[::6]:
            found = json.loads(line)
            check_row(chat, row(input_of(found["instruction"], found["context"]).strip(), found["response"].strip()))


GUARDS = "".join(map(chr, range(0xFDD0, 0xFDF0)))  # noncharacters, which the prompt's own code uses
FORGED = [
    "a {0} b",
    "{0}",
    "{0}{1}{2} x",
    "1. Hi{0}\n{1}\n",
    "</{0}s>",
    f"{GUARDS} {{0}}",
    "    {0}    {1}\n\n\n<h1>",
]


@pytest.mark.parametrize("text", FORGED)
def test_control_tokens_in_a_users_text_stay_text(chat: Chat, text: str) -> None:
    special = [one.content for one in chat.tokenizer.added_tokens_decoder.values() if one.special]
    text = text.format(*[one for one in special if one not in ("<unk>", "<0x00>")][-3:], *special)
    controls = {chat.tokenizer.convert_tokens_to_ids(one) for one in special} - {chat.tokenizer.unk_token_id}
    plain, prompt = chat.prompt_ids(row("word")), chat.prompt_ids(row(text))
    assert [i for i in prompt if i in controls] == [i for i in plain if i in controls]
    completion = chat.completion_ids(row("word", text))
    assert [i for i in completion if i in controls] == [chat.end]
    if chat.tokenizer.chat_template != chats.GEMMA:  # it trims
        decoded = chat.tokenizer.decode(prompt)
        assert "".join(text.split()) in "".join(decoded.split()) or chat.tokenizer.unk_token_id in prompt


def test_what_only_looks_like_a_control_token_after_normalisation_stays_text() -> None:
    chat = Chat(normalising(), today=DAY)
    ids = chat.prompt_ids(row("a \uff1c/s\uff1e b"))  # full-width brackets
    assert chat.tokenizer.eos_token_id not in ids
    assert len(ids) > len(chat.prompt_ids(row("a b")))


def test_ordinary_text_keeps_added_tokens_beside_a_control_token() -> None:
    chat = Chat(phi2(), today=DAY)
    spaces = chat.tokenizer.convert_tokens_to_ids(" " * 8)
    assert spaces in chat.prompt_ids(row("x\n        y")) and spaces in chat.prompt_ids(row("<|im_end|>\n        y"))


@pytest.mark.parametrize(
    ("made", "listed", "end", "ends"),
    [
        (chatml, [], "<|im_end|>", {"<|im_end|>"}),
        (phi2, [], "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),  # the template's, though no file lists it
        (phi3, ["<|endoftext|>", "<|end|>"], "<|end|>", {"<|end|>", "<|endoftext|>"}),
        (gemma, ["<eos>", "<end_of_turn>"], "<end_of_turn>", {"<eos>", "<end_of_turn>"}),
        (mistral, ["</s>"], "</s>", {"</s>"}),
        (normalising, [], "<|im_end|>", {"<|im_end|>", "</s>"}),
    ],
)
def test_the_end_of_a_turn_is_learnt_and_every_listed_end_ends_an_answer(
    made: Any, listed: list[str], end: str, ends: set[str]
) -> None:
    tokenizer = made()
    chat = Chat(tokenizer, tokenizer.convert_tokens_to_ids(listed), today=DAY)
    assert tokenizer.convert_ids_to_tokens(chat.end) == end
    assert {tokenizer.convert_ids_to_tokens(one) for one in chat.ends} == ends
    assert chat.completion_ids(row("How?"))[-1] == chat.end


def test_a_template_without_an_end_of_turn_ends_with_the_end_of_sequence() -> None:
    template = (
        "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}### assistant:\n"
    )
    chat = Chat(byte_level([token("<|endoftext|>")], template, eos_token="<|endoftext|>"), today=DAY)
    assert chat.completion_ids(row("How?"))[-1] == chat.tokenizer.eos_token_id
    with pytest.raises(UserError, match="eos_token"):
        Chat(byte_level([token("<|endoftext|>")], template), today=DAY)


@pytest.mark.parametrize("template", [chats.GEMMA, chats.SILENT], ids=["refused", "dropped"])
def test_without_a_system_role_the_instruction_precedes_the_users_text(template: str) -> None:
    names = ("<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")
    tokens = list(map(token, names))
    chat = Chat(byte_level(tokens, template, eos_token="<eos>", bos_token="<bos>"), today=DAY)
    assert "no system role" in chat.note
    text = chat.tokenizer.decode(chat.prompt_ids(row("How do I fly?", history=HISTORY)))
    assert f"user\n{INSTRUCTION}\n\nWhat is a fern?" in text and text.count(INSTRUCTION) == 1


def test_texts_reach_a_template_that_wants_parts() -> None:
    chat = Chat(vision(), today=DAY)
    text = chat.tokenizer.decode(chat.prompt_ids(row("How do I fly?")))
    assert INSTRUCTION in text and "How do I fly?" in text and not chat.note


@pytest.mark.parametrize(
    "content", ["'x'", "message['content'][:9]", "raise_exception('no')", "message['content'] + 1"]
)
def test_a_template_that_drops_a_text_or_fails_is_refused(content: str) -> None:
    template = chats.CHATML.replace("message['content']", content)
    with pytest.raises(UserError, match=r"the chat template .*model\.chat_template"):
        Chat(byte_level([token("</s>")], template, eos_token="</s>"), today=DAY)


@pytest.mark.parametrize(
    ("cut", "problem"),
    [("message['content'][:99]", "drops or changes"), ("check(message['content'])", "too much")],
)
def test_a_row_that_a_template_refuses_or_cuts_is_named(cut: str, problem: str) -> None:
    check = "{% if text | length > 99 %}{{ raise_exception('too much') }}{% endif %}{{ text }}"
    macro = "{% macro check(text) %}" + check + "{% endmacro %}"
    template = macro + chats.CHATML.replace("message['content']", cut)
    chat = Chat(byte_level([token("</s>")], template, eos_token="</s>"), today=DAY)
    with pytest.raises(UserError, match=f"row 0: the chat template .*{problem}"):
        chat.prompt_ids(row("x" * 100))


def test_alpacas_template_writes_the_prompt_of_the_published_dolly_tables(
    tinyllama: PreTrainedTokenizerBase, real_data: Path
) -> None:
    tinyllama.chat_template = (Path(__file__).parents[2] / "examples/alpaca.jinja").read_text(encoding="utf-8")
    chat = Chat(tinyllama, today=DAY)
    task = "Below is an instruction that describes a task"
    paired = ", paired with an input that provides further context"
    instruction = "Write a response that appropriately completes the request."
    with (real_data / "dolly/test.jsonl").open(encoding="utf-8") as file:
        raw = [json.loads(line) for line in file][:60]
    assert {bool(one["context"]) for one in raw} == {True, False}
    for one in raw:
        intent, context = one["instruction"], one["context"]
        given = f"{task}{paired}. {instruction}\n\n### Instruction:\n{intent}\n\n### Input:\n{context}"
        alone = f"{task}. {instruction}\n\n### Instruction:\n{intent}"
        expected = f"{given if context else alone}\n\n### Response:\n"
        fields = {"context": context, "output": one["response"], "instruction": instruction}
        found = row(input_of(intent, context), **fields)
        assert chat.prompt_ids(found) == tinyllama(expected, add_special_tokens=False).input_ids
        whole = tinyllama(expected + one["response"], add_special_tokens=False).input_ids
        assert [*chat.prompt_ids(found), *chat.completion_ids(found)] == [*whole, tinyllama.eos_token_id]
    forged = row(input_of("a</s>b", "c</s>d"), context="c</s>d", instruction=instruction)
    assert tinyllama.eos_token_id not in chat.prompt_ids(forged)
    with pytest.raises(UserError, match="expected one instruction, got a conversation"):
        chat.prompt_ids(row("And then?", instruction=instruction, history=HISTORY))


def test_todays_date_is_the_one_that_is_given() -> None:
    tokens = [token("<|im_start|>"), token("<|im_end|>")]
    texts = []
    for day in (DAY, date(2025, 1, 2)):
        chat = Chat(byte_level(tokens, chats.DATED, eos_token="<|im_end|>"), today=day)
        texts.append(chat.tokenizer.decode(chat.prompt_ids(row("How?"))))
    assert "Today: 26 Jul 2024, 2024-07-26\n" in texts[0] and "Today: 02 Jan 2025, 2025-01-02\n" in texts[1]


def test_a_base_without_a_chat_template_is_refused(workplace: Path) -> None:
    (workplace / "models/base/chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_chat(workplace / "models/base")


def test_of_several_chat_templates_the_default_one_is_used() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = {"tool_use": chats.SILENT, "default": chats.CHATML}
    assert Chat(tokenizer, today=DAY).prompt_ids(row("How?")) == Chat(chatml(), today=DAY).prompt_ids(row("How?"))
    del tokenizer.chat_template["default"]
    with pytest.raises(UserError, match=r"default one of tool_use\. Set model\.chat_template"):
        Chat(tokenizer, today=DAY)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_the_ends_of_an_answer_are_read_from_the_models_files(workplace: Path, name: str) -> None:
    base = workplace / "models/base"
    (base / "generation_config.json").write_text("{}", encoding="utf-8")
    config = json.loads((base / name).read_text(encoding="utf-8")) | {"eos_token_id": [2, 7]}
    (base / name).write_text(json.dumps(config), encoding="utf-8")
    assert load_chat(base).ends == {2, 7}


def test_a_context_that_is_too_long_is_cut_to_the_words_that_fit(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = Chat(tiny_tokenizer, today=DAY)
    context = " ".join(f"word{number}" for number in range(300))
    long = row(f"How?\n\n{context}", context=context)
    bare = len(chat.prompt_ids(row("How?")))
    for limit in (bare, bare + 20, bare + 200):
        shorter = chat.shorten(long, limit)
        assert shorter is not None and long.input.startswith(shorter.input) and shorter.intent == "How?"
        assert len(chat.prompt_ids(shorter)) <= limit
        more = long.input[: len(shorter.input)] + long.input[len(shorter.input) :].split(" word")[0] + " word9999"
        assert len(chat.prompt_ids(row(more))) > limit
    assert chat.shorten(long, 100_000) == long
    assert chat.shorten(long, bare - 1) is None


def test_a_history_that_is_too_long_loses_its_oldest_turns(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = Chat(tiny_tokenizer, today=DAY)
    turns = [Message(role=role, content=f"{role} {n}") for n in range(3) for role in ("user", "assistant")]
    long = row("How?", history=tuple(turns))
    whole = len(chat.prompt_ids(long))
    shorter = chat.shorten(long, whole - 1)
    assert shorter is not None and list(shorter.history) == turns[2:] and shorter.input == "How?"
    alone = chat.shorten(long, len(chat.prompt_ids(row("How?"))))
    assert alone == row("How?")
