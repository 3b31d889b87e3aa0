"""The table of recipes in the documentation is generated, and is today's."""

from __future__ import annotations

from pathlib import Path

from neuron_port.contributing.table import BEGIN, END, render_table, update
from neuron_port.registry import Registry, data_folder

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_has_todays_table() -> None:
    """docs/recipes.md lists exactly the recipes there are; `python -m neuron_port.contributing.table` rewrites it."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert table == render_table(Registry(data_folder("recipes")).values())


def test_a_stale_table_is_rewritten_in_place(tmp_path: Path) -> None:
    """Rewriting replaces what stands between the marks, leaves the rest, and changes nothing the second time."""
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{BEGIN}\n| old |\n{END}\nafter\n")
    update(page)
    written = page.read_text()
    assert written.startswith("# Before\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "| old |" not in written
    assert "| [rms_norm](../recipes/rms_norm/README.md) | " in written
    update(page)
    assert page.read_text() == written
