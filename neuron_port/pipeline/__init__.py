"""The ordered stages of a conversion, their keys in the store, and how they resume.

options.py         what is asked for
refusals.py        what can be refused before the long work
workbench.py       what stages share, built when first needed
planning.py ▶ kernel_proof.py ▶ lowering.py ▶ oracle.py ▶ sequence_proof.py ▶ golden.py     one stage each
graph_steps.py     the graphs as steps that can be called, which the proofs of whole models share
batch_proof.py     sequence_proof.py with a prompt of its own in each row of a batch (batch_runs.py)
convert.py         the order
"""
