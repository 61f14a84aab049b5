"""How tests read what the terminal shows."""

import io

from rich.console import Console


def in_80_columns(table):
    """The cells of a table, row by row, and its text; fails where 80 columns do not hold every cell unbroken.

    Names may wrap, between words; the numbers in the other columns may not.
    """
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    names, *numbers = ([str(cell) for cell in column.cells] for column in table.columns)
    titles = [line for column in table.columns for line in column.header.splitlines()]
    words = [word for name in names for word in name.split()]
    for whole in (*titles, *words, *(number for column in numbers for number in column)):
        assert whole in text, whole
    rows = [[" ".join(cell.split()) for cell in row] for row in zip(names, *numbers, strict=True)]
    return rows, text
