"""The ordered stages of a conversion, their keys in the store, and how they resume.

options.py         what is asked for
refusals.py        what can be refused before the long work
workbench.py       what stages share, built when first needed
planning.py ▶ kernel_proof.py ▶ lowering.py ▶ oracle.py ▶ sequence_proof.py ▶ golden.py     one stage each
convert.py         the order
"""
