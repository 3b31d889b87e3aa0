"""The way from nothing to a recipe that others use, in the order in which it is walked.

new.py             a folder that passes every check already, to be edited (`skeleton/` is what it writes)
check.py           runs the checks below, in this order, and says what a reviewer would
folder_checks.py   lint, imports, files and what they must say: nothing of the recipe runs
probing.py         the recipe against the layer in example.py, on randomised parameters
gpu_source.py      the GPU source against the reference, on Triton's interpreter
trials.py          the kernel on its cases, and on sizes and values that it has not been shown (`sizes.py`)
faults.py          wrong kernels that must be refused
in_model.py        the layers of a model that the recipe takes, on that model's own shapes
cost.py            predicted latency and share of the roofline per target
records.py         what a check found
table.py           the table of all recipes in docs/recipes.md
export.py          a recipe as a Hugging Face `kernels` repository
"""
