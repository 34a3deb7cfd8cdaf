"""Stub."""
PAGE=type("P",(),{"source":"studies/pruning.py"})
FIGURES={}
