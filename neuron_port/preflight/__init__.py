"""What can be said before a conversion: does the model fit, where, at what price and speed; and what this machine has.

records.py     the question, and the report's parts
check.py       the question answered, from the configuration alone
blocks.py      a copy of the model with one block of each kind
anatomy.py     parameters by kind
sizing.py      what one of N cores holds
roofline.py    seconds of a step, Neuron chips and GPUs alike
fitting.py     instance types
findings.py    what is known to fail
support.py     which framework knows chip and model (support.toml)
verdict.py     the answer in a sentence
terminal.py  page.py     how it is shown
doctor.py  probes.py     this machine: packages, versions that go together (releases.toml), what works
"""
