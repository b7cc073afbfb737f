"""Results as they are printed and as `summary.md`."""

from __future__ import annotations

from typing import Any

from .tables import (
    Results,
    Table,
    controls_table,
    detectable,
    folds_table,
    headline_table,
    headlines,
    quality_table,
    sections,
    verdicts,
)
from .verdicts import SPLIT_TITLES


def to_markdown(table: Table) -> str:
    """A table in Markdown, with its title and notes."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "|".join("---" for _ in table.columns) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *table.notes]).rstrip() + "\n"


def print_summary(results: Results, console: Any = None) -> None:
    """Prints the headline of every dataset: one table, then a sentence a method."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = console or Console()
    if not console.is_terminal:
        console.width = 160
    found = sections(results)
    tables = [headline_table(section) for section in found]
    columns = list(dict.fromkeys(column for table in tables for column in table.columns[1:]))
    sizes = sorted({k for section in found for k in section.sizes(section.split)})
    columns = [*(f"k = {k}" for k in sizes), *(column for column in columns if not column.startswith("k = "))]
    show_data = len(found) > 1
    shown = RichTable(title=None if show_data else tables[0].title, title_style="bold", caption_justify="left")
    for column in (["data"] if show_data else []) + ["method", *columns]:
        shown.add_column(column, justify="left" if column in ("data", "method") else "right")
    for section, table in zip(found, tables):
        for number, row in enumerate(table.rows):
            cells = dict(zip(table.columns[1:], row[1:]))
            start = [f"{section.dataset}" if number == 0 else ""] if show_data else []
            style = "dim" if number in table.marked else None
            shown.add_row(*start, row[0], *(cells.get(column, "") for column in columns), style=style)
        shown.add_section()
    console.print(shown)
    for section in found:
        name = f"{section.dataset}, " if show_data else ""
        for split in headlines(section):
            notes = " ".join(headline_table(section, split).notes)
            console.print(f"[bold]{name}{SPLIT_TITLES.get(split, split)}[/bold]: {notes}", highlight=False)
            for method, _, text in verdicts(section, split):
                console.print(f"  {method}: {text}.", highlight=False, markup=False)
        if sentence := detectable(section):
            console.print(f"  {sentence}", highlight=False, style="dim", markup=False)


def markdown_summary(results: Results, title: str) -> str:
    """`summary.md`: for every dataset the headline, the verdicts, controls and folds."""
    parts = [f"# {title}\n"]
    for section in sections(results):
        parts.append(f"## {section.dataset}\n")
        for split in headlines(section):
            if split != section.split:
                parts.append(f"On {SPLIT_TITLES.get(split, split)}, where there is more data:\n")
            parts += [f"- `{method}` {text}." for method, _, text in verdicts(section, split)]
            parts.append("")
        parts += [sentence + "\n"] if (sentence := detectable(section)) else []
        tables = [headline_table(section), controls_table(section), folds_table(section), quality_table(section)]
        tables += [headline_table(section, split) for split in section.splits if split != section.split]
        parts += [to_markdown(table) for table in tables if table is not None]
    return "\n".join(parts)
