"""Draft kernels with a language model: from a task and its GPU sources to a kernel that the grader admitted.

subjects/      a layer of a model, or a function in a file, as a task            ┐
sources/       GPU code: origin, licence, comments                               │ before
memory/        what earlier runs learnt;  learning.py: taken from it, left in it ┘
prompts/       what the model is told ▶ spending/ asks and pays ▶ replies/ what it answered
loop.py        plan ▶ draft ▶ try ▶ repair ▶ admit;  plans.py, lines.py, trying.py, candidates.py, options.py, workshop.py
optimize.py    a faster kernel in place of a right one;  measuring.py
keeping/       the journal of a run, replies and verdicts: what survives a kill
in_graph.py    the kernel inside a model
drafts.py      an admitted kernel becomes a recipe folder;  folder.py, draft_page.py
tree.py        the story of a run as text;  page.py, templates/: as a page
"""
