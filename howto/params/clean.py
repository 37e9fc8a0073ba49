"""The `prepare.clean` section of params.yaml."""

from __future__ import annotations

from howto.params.section import Section


class Clean(Section):
    """Which steps of cleaning are switched on, in the order in which they are taken; it stands inside `prepare`.

    `howto.cleaning` says what each of them does.
    """

    line_ends: bool
    control_characters: bool
    invisible_characters: bool
    unicode_nfc: bool
    blanks: bool
    reference_marks: bool
