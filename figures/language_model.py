from figures.page import Page
PAGE = Page("studies/language_model.py", {})
FIGURES = {}
