"""Candidate kernels run here: read before they run, confined while they run, and able to give back arrays only.

run_job / SandboxWorker  ▶  gate (text, names, constructs)  ▶  process ║ child  ▶  confinement  ▶  namespace  ▶  simulator

Three walls, each of which holds without the others: the gate lets only NKI's Python pass, the namespace shows only public
names, and the confinement takes files, network, processes and privileges away before the candidate is loaded. What comes
back is form-checked arrays and counts; whether they are right is judged elsewhere.
"""
