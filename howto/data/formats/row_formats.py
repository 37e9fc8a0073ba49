"""Which columns of a raw row hold what: those that `prepare.columns` names, or else those of a usual format.

The formats are Alpaca's, TRL's (https://huggingface.co/docs/trl/dataset_formats), OpenAI's and ShareGPT's, and that of
the rows that `prepare` writes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from howto.core.errors import UserError
from howto.data.config import Columns

CONVERSATIONS = ("messages", "conversations", "conversation")
# Instruction and response, in the order of preference.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
)
INTENTS = ("intent", "instruction", "input", "prompt", "question")  # where no answer is expected
SYSTEM = ("system", "system_prompt")
ALPACA_CONTEXT = "input"
PREPARED = {"id", "category", "instruction", "input", "context", "output"}  # of every row that `prepare` writes
OPTIONAL = ("context", "category", "references")  # keys of `prepare.columns` whose column a row may lack
PANDAS_INDEX = ("", "Unnamed: 0", "__index_level_0__")  # columns that pandas adds to a file
KNOWN = 1000  # sets of columns that are remembered, and names that are kept for messages
SHOWN = 10  # names in a message


class BadRow(Exception):
    """What is wrong with a row."""


class RowFormat(NamedTuple):
    """The columns of a row that hold a conversation, or instruction and response, and what belongs to them."""

    name: str  # for people; "" if `prepare.columns` names the columns
    messages: str | None = None
    instruction: str | None = None
    response: str | None = None
    context: str | None = None
    category: str | None = None
    references: str | None = None
    system: str | None = None
    history: str | None = None
    source: str | None = None
    unread: tuple[str, ...] = ()  # the other columns

    @property
    def read(self) -> list[str]:
        """Return the columns that are read."""
        return [name for name in self[1:-1] if isinstance(name, str)]


class RowFormats:
    """Finds the format of a row by the names of its columns. It can be sent to another process."""

    def __init__(self, columns: Columns, *, answered: bool = True) -> None:
        """Rows need a response only if `answered`."""
        self._columns, self.answered = columns, answered
        self._known: dict[tuple[str, ...], RowFormat] = {}

    def of(self, names: tuple[str, ...]) -> RowFormat:
        """Return the format of a row with these columns.

        Raise BadRow if they are those of no format, or a column is there under another name than the one expected.
        """
        found = self._known.get(names)
        if found is None:
            found = self._find(names)
            if len(self._known) < KNOWN:
                self._known[names] = found
        return found

    def _find(self, names: tuple[str, ...]) -> RowFormat:
        columns, there = self._columns, set(names)
        found = self._named(there) or self._usual(there)
        if found is None:
            raise BadRow(self._problem(names))
        has = {key: name for key in OPTIONAL if (name := getattr(columns, key)) in there and not getattr(found, key)}
        found = found._replace(**has)
        unread = [name for name in dict.fromkeys(names) if name not in found.read and name not in PANDAS_INDEX]
        found = found._replace(unread=tuple(unread))
        for key in OPTIONAL:
            name = getattr(columns, key)
            if not name or getattr(found, key):
                continue
            same = [other for other in found.unread if _letters(other) == _letters(name)]
            if key == "context" and ALPACA_CONTEXT in found.unread:
                same.append(ALPACA_CONTEXT)
            if same:
                raise BadRow(f"column {same[0]!r} is not read, because prepare.columns.{key} is {name!r}")
        return found

    def _named(self, there: set[str]) -> RowFormat | None:
        """Return the format that `prepare.columns` describes, if its columns are there."""
        columns = self._columns
        if columns.messages in there:
            return RowFormat("", messages=columns.messages)
        pair = (columns.instruction, columns.response)
        if self.answered and there.issuperset(pair) and not (pair == ("input", "output") and there >= PREPARED):
            return RowFormat("", instruction=columns.instruction, response=columns.response)
        return None

    def _usual(self, there: set[str]) -> RowFormat | None:
        """Return the first usual format whose columns are there, unless it contradicts `prepare.columns`."""
        if there >= PREPARED:
            references, history, source = (
                name if name in there else None for name in ("references", "history", "source")
            )
            return RowFormat(
                "rows that prepare wrote", instruction="input", response="output", context="context",
                category="category", references=references, system="instruction", history=history, source=source,
            )  # fmt: skip
        for found in self._candidates(there):
            named = {self._columns.instruction, self._columns.response} & there
            if not self.answered or named <= set(found.read):
                return found
        return None

    def _candidates(self, there: set[str]) -> list[RowFormat]:
        system = next((name for name in SYSTEM if name in there), None)
        history = "history" if "history" in there else None
        found = [
            RowFormat(f"a conversation in {name!r}", messages=name, system=system)
            for name in CONVERSATIONS
            if name in there
        ]
        if self.answered:
            pairs: Sequence[tuple[str, str | None]] = [pair for pair in PAIRS if there.issuperset(pair)]
        else:
            intents = dict.fromkeys([INTENTS[0], self._columns.instruction, *INTENTS])
            pairs = [(name, None) for name in intents if name in there]
        for instruction, response in pairs:
            context, name = None, " and ".join(map(repr, filter(None, (instruction, response))))
            if instruction == "instruction" and response in ("output", None) and ALPACA_CONTEXT in there:
                if self._columns.context in there - {ALPACA_CONTEXT}:
                    break  # either of the two could be the context
                context, name = ALPACA_CONTEXT, f"{name}, with the context in {ALPACA_CONTEXT!r}"
            found.append(
                RowFormat(
                    name, instruction=instruction, response=response, context=context, system=system, history=history
                )
            )
        if not self.answered:  # a column that is named for the intent comes before a conversation
            found.sort(key=lambda one: one.instruction not in (INTENTS[0], self._columns.instruction))
        return found

    def _problem(self, names: tuple[str, ...]) -> str:
        columns, there = self._columns, f"(there are {listed(names)})"
        if not self.answered:
            expected = dict.fromkeys([*INTENTS, columns.instruction, *CONVERSATIONS])
            return f"expected one of the columns {', '.join(expected)} {there}"
        missing = columns.instruction if columns.instruction not in names else columns.response
        return f"no column {missing!r} {there}; prepare.columns names the columns to read"


class ColumnUse:
    """Which columns of all rows were read, and which were not."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._usual: Counter[str] = Counter()  # rows by the name of their format
        self._read: dict[str, None] = {}
        self._unread: dict[str, str] = {}  # with the file of the first
        self._may_lack: set[str] = set()  # keys of `prepare.columns`, where a column that is not read may be meant

    def add(self, formats: Counter[RowFormat], file: str) -> None:
        """Count the rows of a file by their format."""
        for found, rows in formats.items():
            self._read |= dict.fromkeys(found.read)
            for name in found.unread if len(self._unread) < KNOWN else ():
                self._unread.setdefault(name, file)
            if found.name:
                self._usual[found.name] += rows
            if found.unread and not found.name:
                self._may_lack.update(OPTIONAL)
            elif found.unread and not found.messages and not found.context:  # a conversation has its texts in itself
                self._may_lack.add("context")

    def check(self) -> None:
        """Raise UserError if no row has a column that `prepare.columns` names, while another column is not read."""
        named = {key: name for key in ("messages", *OPTIONAL) if (name := getattr(self._columns, key))}
        keys = [key for key in named if named[key] not in self._read and key in {*self._may_lack, "messages"}]
        if keys:
            raise UserError(
                f"params.yaml: {' and '.join(f'prepare.columns.{key}' for key in keys)}: no row has a column "
                f"{' or '.join(repr(named[key]) for key in keys)}. The rows have {listed(list(self._read))}, and these "
                f"are not read: {listed(list(self._unread))}. Name one of them, or set the key to null."
            )

    def lines(self) -> list[str]:
        """Return a line for each usual format that was found, and one for the columns that are not read."""
        lines = [f"{rows} rows recognised by their columns: {name}" for name, rows in sorted(self._usual.items())]
        if self._unread:
            names = [f"{name!r:.80} ({file})" for name, file in list(self._unread.items())[:SHOWN]]
            more = f" and {len(self._unread) - SHOWN} more" if len(self._unread) > SHOWN else ""
            lines.append(f"columns that are not read: {', '.join(names)}{more}")
        return lines


def listed(names: Sequence[str]) -> str:
    """Return the first of the names, short enough for a message."""
    return f"{', '.join(f'{name!r:.80}' for name in names[:SHOWN]) or 'none':.300}"


def _letters(name: str) -> str:
    """Return what two spellings of a name share: "Context " and "context"."""
    return "".join(filter(str.isalnum, name.casefold()))
