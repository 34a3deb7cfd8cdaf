"""Stub."""
PAGE=type("P",(),{"source":"studies/unlearning.py"})
FIGURES={}
