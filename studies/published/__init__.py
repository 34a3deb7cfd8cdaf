"""Published zeroth-order and forward estimators, each a sentence of fgvar's words or a law of directions in one file.

`rows` is their table, `claims` what their papers say of them; `studies/audit.py` measures both.
"""
