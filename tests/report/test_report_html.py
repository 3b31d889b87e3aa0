"""The HTML report: complete, self-contained, escaped, and right in its numbers."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from functools import cached_property
from html.parser import HTMLParser

import made_up_conversion as made_up
import pytest

from neuron_port.report import write_html
from neuron_port.report.continuations import continuation
from neuron_port.report.html import render
from neuron_port.report.pictures import LogAxis, layer_chart, limit_axis, strips
from neuron_port.report.records import Conversion

VOID = {"meta", "input", "br", "wbr", "hr", "img", "link", "source"}


class Page(HTMLParser):
    """Parses strictly: every element must be closed in order. Collects tags, attributes and visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.inline = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element at {self.getpos()}"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.inline[self.open[-1]] = data
        else:
            self.words.append(data)

    @cached_property
    def text(self):
        return " ".join("".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def html(**changes):
    return render(Conversion(**made_up.conversion(**changes)))


@pytest.fixture(scope="module")
def page():
    return Page(html())


def test_well_formed_with_headings(page):
    """Every element is closed, there is one first heading, and all sections are there."""
    assert len(page.all("h1")) == len(page.all("main")) == 1
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["open", "plan", "kernels", "outputs", "texts", "graphs", "stages", "provenance"]


def test_nothing_comes_from_outside(page):
    """No element loads or links to anything outside of the file."""
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "action", "style"}
            assert not name.startswith("on")
            if name == "href":
                assert value == "#cross"
    assert "url(" not in page.inline["style"].replace("url(#hatch)", "")
    assert "@import" not in page.inline["style"]
    assert not re.search(r"fetch|XMLHttp|import\(|https?:", page.inline["script"])


def test_policy_allows_exactly_the_inline_parts(page):
    """The content policy names the digests of the style sheet and the script that the page carries."""
    policy = next(item["content"] for item in page.all("meta") if item.get("http-equiv"))
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inline[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_hostile_names_stay_text():
    """Markup in names, reasons, details and texts is shown, never interpreted."""
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    fields = made_up.conversion()
    plan = fields["plan"]
    matches = tuple(
        replace(match, reason=f"`{attack}` {attack}", recipe=match.recipe and attack)
        for match in plan.matches
    )
    report = replace(
        fields["kernel_reports"][0], subject=f"{attack} · {attack} · {attack}", not_proven=(attack,)
    )
    wrong = tuple(replace(item, name=attack, detail=attack, metrics={attack: 1.0}) for item in report.cases)
    text = html(
        checkpoint=made_up.checkpoint(name=attack, source=attack, license=attack),
        plan=replace(plan, matches=matches),
        kernel_reports=(replace(report, cases=wrong),),
        model_reports=tuple(replace(item, subject=attack) for item in fields["model_reports"]),
        graph_lints={
            "prefill_b1_t256": {attack: {attack: 1}, "findings": [attack, {attack: attack}], "x": attack}
        },
        bundle=attack,
    )
    page = Page(text)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert attack in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_every_layer_and_every_case_is_there(page):
    """All layer names, all cases and all graph inputs and outputs can be found on the page."""
    fields = made_up.conversion()
    for graph in fields["graphs"]:
        for layer in graph.layers:
            assert layer.name in page.text
            assert layer.signature in page.text
    rows = sum(len(report.cases) for report in (*fields["kernel_reports"], *fields["graph_reports"]))
    marks = [
        item
        for _, item in page.tags
        if "dot" in item.get("class", "").split() and "cy" in item and "%" not in item["cy"]
    ]
    crosses = [item for item in page.all("use") if "sabotage" in item["class"] and item["x"] != "50%"]
    assert len(marks) + len(crosses) == sum(len(report.cases) for report in fields["kernel_reports"]) == 150
    assert page.text.count("refused by relative_l2") == len(crosses) == 30
    assert len(page.all("tr")) > rows
    for spec in fields["graph_specs"]:
        for item in (*spec.inputs, *spec.outputs):
            assert item.name in page.text
    for stage in fields["stages"]:
        assert stage.detail in page.text


def test_numbers_are_the_records(page):
    """Shares, counts, metrics and limits on the page are those of the records."""
    assert "120 of 120 cases hold; 30 of 30 wrong results refused" in page.text
    assert "332 of 333 layers go to kernels" in page.text
    assert "71.9 % of FLOPs" in [item.get("aria-label") for item in page.all("svg")]
    assert "First difference at token 10 of 24." in page.text
    assert "4 min 50 s" in page.text


def test_tables_have_headers_and_pictures_have_words(page):
    """Every table has a caption and scoped headers; every picture has a label or is hidden."""
    assert len(page.all("caption")) == len(page.all("table")) == len(page.all("thead"))
    assert all("scope" in attributes for attributes in page.all("th"))
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")


def test_failures_are_loud():
    """A failed case opens its table and is called by name; a passing report opens none."""
    reports = list(made_up.conversion()["kernel_reports"])
    reports[2] = made_up.failing(reports[2], 1, detail="row 129 is stale", metrics={"relative_l2": 0.5})
    bad = Page(html(kernel_reports=reports))
    assert "Not proven: proof 1 (kernel = layer) failed." in bad.text
    assert bad.text.count("row 129 is stale") == 2
    assert "failed" in [item["id"] for item in bad.all("section")]
    assert [item for item in bad.all("details") if "open" in item] != []
    good = Page(html())
    assert [item for item in good.all("details") if "open" in item] == []
    assert "FAILED" not in good.text


def test_empty_conversion_still_tells():
    """A conversion that was stopped early gives a page that says what was not run."""
    nothing = dict.fromkeys(
        ("graphs", "kernel_reports", "graph_reports", "model_reports", "graph_specs", "stages"), ()
    )
    found = Page(html(**nothing, graph_lints={}))
    assert "Not proven: none of the three proofs has been run." in found.text
    assert "No kernel was tried." in found.text


def test_written_whole(tmp_path):
    """The file is written aside and renamed: nothing else remains in the folder."""
    write_html(tmp_path / "report.html", **made_up.conversion())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>")


def test_limit_line_separates_right_from_wrong():
    """Passed right results are drawn left of the limit, refused wrong ones right of it."""
    reports = made_up.conversion()["kernel_reports"]
    axis = limit_axis(reports)
    dots = [dot for strip in strips(reports, axis) for lane in strip.lanes for dot in lane.dots]
    assert all((dot.x_percent > axis.position(1)) == (dot.mark == "sabotage") for dot in dots)


def test_axis_is_logarithmic_with_places_for_the_extremes():
    """Equal ratios are equal distances on one side of the limit; the extremes stay on the page."""
    axis = LogAxis(low=-3, high=6, fixed_percent=60)
    assert axis.position(0.01) - axis.position(0.001) == pytest.approx(
        axis.position(1) - axis.position(0.1), abs=0.01
    )
    assert axis.position(1) == 60
    assert 0 < axis.position(0) < axis.position(1e-9) < axis.position(1e9) < axis.position(float("inf")) < 100


def test_layer_chart_has_a_point_for_each_layer_and_prompt():
    """The chart takes the metrics named layer_<n>; a report without them has no chart."""
    float32, bfloat16 = made_up.conversion()["model_reports"]
    assert layer_chart(float32) is None
    chart = layer_chart(bfloat16)
    assert (len(chart.points), chart.first_layer, chart.last_layer) == (90, 0, 29)
    assert all(0 <= point.x_percent <= 100 and 0 <= point.y_percent <= 100 for point in chart.points)


def test_continuations_part_where_they_differ():
    """The agreed part, both rests and the first differing token are found; other details are left alone."""
    fields = {
        "prompt": "p", "reference_text": "abc", "ported_text": "abd",
        "reference_tokens": [1, 2], "ported_tokens": [1, 3],
    }  # fmt: skip
    found = continuation(json.dumps(fields))
    assert (found.agreed, found.reference_rest, found.ported_rest, found.first_difference) == (
        "ab",
        "c",
        "d",
        1,
    )
    longer = continuation(json.dumps({**fields, "ported_text": "abc", "ported_tokens": [1, 2, 3]}))
    assert longer.first_difference == 2
    assert continuation("plain words") is None
    assert continuation("[1]") is None
    assert continuation("{}") is None
