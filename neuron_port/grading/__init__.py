"""Grades kernels that nobody trusts: a candidate gives arrays and nothing else; everything is judged here.

recipe_task  ▶  oracle (truth, frozen before any candidate)  ▶  gates (no run)  ▶  sandbox  ▶  judge, guards, evidence
▶  verdict. `grader.Grader` puts them in order; `hidden` draws the cases that a candidate has not been shown.
"""
