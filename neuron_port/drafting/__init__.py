"""Draft kernels with a language model: from a task and its GPU sources to a kernel that the grader admitted."""
