"""What people see: the live view, the terminal summary, the HTML report, and the same facts as JSON.

records.py         StageRecord, and Conversion: everything that a report is made from
coverage.py        the plan as rows with their weight; gaps.py: what no kernel takes, and what would cover it
cases.py           one case's margin, the worst of many, verdict or measurement
proofs.py          the state of the three proofs; essentials.py: what proofs 2 and 3 found, in words
sequences.py       whole prompts as tables; embeddings.py: directions of vectors and the order of their similarities
open_questions.py  what was not proven
numbers.py         numbers, shapes and names as text
pictures.py        positions of everything drawn; continuations.py: texts cut where they part
html.py            the HTML report, from templates/
terminal.py        plan table and closing summary
machine.py         the summary as JSON
live.py            the view while converting
"""

from neuron_port.report.html import write_html
from neuron_port.report.live import LiveView
from neuron_port.report.machine import json_summary
from neuron_port.report.records import Conversion, ConversionFields, StageRecord
from neuron_port.report.terminal import coverage_text, plan_table, summary

__all__ = [
    "write_html", "plan_table", "coverage_text", "summary", "json_summary", "LiveView", "StageRecord",
    "Conversion", "ConversionFields",
]  # fmt: skip
