"""A table as text cells: CSV with ``,`` ``;`` or tabs, with or without a byte order mark, LF or CRLF; or Parquet.

Every refusal names its line, so that it can be found in a spreadsheet.
"""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from medloom.errors import DataError

SUFFIXES = frozenset((".csv", ".tsv", ".parquet"))
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class Table:
    """Cells as text; ``lines`` holds the line of each row in the file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def place(self, row: int) -> str:
        """``labels.csv:17``."""
        return f"{self.path.name}:{self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        position = self.columns.index(name)
        return [row[position] for row in self.rows]


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Read a CSV, TSV or Parquet file.

    Raises:
        DataError: D114 unreadable; D115 no rows; D116 encoding, quotes, width of a row, column names.
    """
    if path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
    else:
        try:
            data = path.read_bytes()
        except OSError as problem:
            raise DataError("D114", path, f"cannot be read ({problem.strerror})", "Correct its permissions") from None
        table = _parse(path, _text(path, data, encoding))
    if not table.rows:
        raise DataError("D115", path, "the table has no rows", "Give one row per image")
    for position, name in enumerate(table.columns):
        if table.columns.index(name) != position:
            raise DataError("D116", f"{path}:{1}", f"two columns are named {name!r}", "Rename one")
    return table


def _text(path: Path, data: bytes, encoding: str) -> str:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            encoding = name
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise DataError(
            "D116",
            f"{path}:{line}",
            f"not {encoding} text",
            "Save it as UTF-8, or name its encoding: --set data.encoding=cp1251 (Excel in Ukrainian), cp1252 (western)",
        ) from None
    except LookupError:
        raise DataError("D116", path, f"unknown encoding {encoding!r}", "Say utf-8, cp1251, cp1252 ...") from None


def _parse(path: Path, text: str) -> Table:
    skipped = 0
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep="):  # Excel's own hint line
        text, skipped = rest, 1
        first = rest.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: tuple[str, ...] | None = None
    rows, lines = [], []
    try:
        for cells in reader:
            line, cells = reader.line_num + skipped, [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if columns is None:
                while cells and not cells[-1]:
                    cells.pop()
                columns = tuple(cells)
                continue
            while len(cells) > len(columns) and not cells[-1]:
                cells.pop()
            if len(cells) != len(columns):
                raise DataError(
                    "D116", f"{path}:{line}", f"{len(cells)} cells under {len(columns)} columns", "Correct the row"
                )
            rows.append(tuple(cells))
            lines.append(line)
    except csv.Error as problem:
        raise DataError(
            "D116", f"{path}:{reader.line_num + skipped}", f"not a CSV row ({problem})", "Correct it"
        ) from None
    return Table(path, columns or (), tuple(rows), tuple(lines))


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("D116", path, "Parquet needs pyarrow", "pip install pyarrow, or save it as CSV") from None
    try:
        columns = pyarrow.parquet.read_table(path).to_pydict()
    except (OSError, pyarrow.ArrowException) as problem:
        raise DataError("D116", path, f"not a whole Parquet file ({problem})", "Write it again") from None
    rows = tuple(zip(*([_cell(value) for value in column] for column in columns.values())))
    return Table(path, tuple(name.strip() for name in columns), rows, tuple(range(1, len(rows) + 1)))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return "|".join(str(item) for item in value)
    return "" if value is None or value != value else str(value).strip()
