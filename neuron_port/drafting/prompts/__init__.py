"""What the language model is told: templates (`*.md`), the part of NKI that a task needs, questions, feedback."""
