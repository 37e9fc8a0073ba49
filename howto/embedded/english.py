"""The little English grammar that the embedded world needs: past tenses and articles."""

from __future__ import annotations

import re

IRREGULAR = {
    "be": "was", "is": "was", "are": "were", "have": "had", "has": "had", "do": "did",
    "beat": "beat", "begin": "began", "bend": "bent", "bind": "bound", "blow": "blew", "break": "broke",
    "bring": "brought", "build": "built", "burn": "burnt", "buy": "bought", "catch": "caught",
    "choose": "chose", "cling": "clung", "come": "came", "cut": "cut", "dig": "dug", "draw": "drew",
    "drink": "drank", "drive": "drove", "eat": "ate", "fall": "fell", "feed": "fed", "feel": "felt",
    "find": "found", "fold": "folded", "freeze": "froze", "get": "got", "give": "gave", "go": "went",
    "grind": "ground", "grow": "grew", "hang": "hung", "hear": "heard", "hide": "hid", "hit": "hit",
    "hold": "held", "keep": "kept", "kneel": "knelt", "know": "knew", "lay": "laid", "lead": "led",
    "lean": "leant", "leave": "left", "lend": "lent", "let": "let", "lie": "lay", "light": "lit",
    "lose": "lost", "make": "made", "meet": "met", "pay": "paid", "put": "put", "quit": "quit",
    "read": "read", "ride": "rode", "ring": "rang", "rise": "rose", "run": "ran", "say": "said",
    "see": "saw", "sell": "sold", "send": "sent", "set": "set", "shake": "shook", "shine": "shone",
    "show": "showed", "shut": "shut", "sing": "sang", "sink": "sank", "sit": "sat", "slide": "slid",
    "speak": "spoke", "spend": "spent", "spin": "spun", "split": "split", "spread": "spread",
    "stand": "stood", "steal": "stole", "stick": "stuck", "sweep": "swept", "swing": "swung",
    "take": "took", "teach": "taught", "tear": "tore", "tell": "told", "think": "thought",
    "throw": "threw", "tread": "trod", "undo": "undid", "unwind": "unwound", "understand": "understood",
    "wake": "woke", "wear": "wore", "weave": "wove", "wet": "wet", "win": "won", "wind": "wound",
    "withdraw": "withdrew", "wring": "wrung", "write": "wrote", "rebuild": "rebuilt", "reset": "reset",
    "rewrite": "rewrote", "retake": "retook", "overlay": "overlaid", "sew": "sewed", "knit": "knitted",
}  # fmt: skip

# Verbs of two syllables whose last consonant doubles; those of one syllable follow a rule.
DOUBLING = {"repot", "unplug", "unclip", "unpin", "unwrap", "unzip", "prefer", "refit", "unpeg", "unscrew"} - {
    "unscrew"
}


def past(verb: str) -> str:
    """The simple past of an English verb, in the case of its first letter."""
    lower = verb.lower()
    if lower in IRREGULAR:
        tense = IRREGULAR[lower]
    elif lower.endswith("e"):
        tense = lower + "d"
    elif re.search(r"[^aeiou]y$", lower):
        tense = lower[:-1] + "ied"
    elif lower in DOUBLING or re.fullmatch(r"(qu|[^aeiou])*[aeiou][bdgklmnprt]", lower):
        tense = lower + lower[-1] + "ed"
    else:
        tense = lower + "ed"
    return tense.capitalize() if verb[0].isupper() else tense


def bare(noun: str) -> str:
    """`a fern` -> `fern`; a noun without an article stays as it is."""
    return re.sub(r"^(a|an|the) ", "", noun)


def the(noun: str) -> str:
    """`a fern` -> `the fern`, `jam` -> `the jam`."""
    return "the " + bare(noun)


def sentence(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def listed(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
