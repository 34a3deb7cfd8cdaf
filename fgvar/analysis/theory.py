def variance(e, p):
    raise ValueError("stub")
