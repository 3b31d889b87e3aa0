"""Kernel tasks as environments for reinforcement learning: one pure `grade`, and adapters to three libraries.

grade.py (completion -> reward)  ▶  suite.py (tasks by name, prompts, grades remembered)  ▶  *_adapter.py
Each adapter imports its library when it is itself imported, and nothing here imports an adapter.
"""
