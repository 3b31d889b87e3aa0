"""The meaning of each NKI instruction: one function each, a file per engine; the body is the semantics."""
