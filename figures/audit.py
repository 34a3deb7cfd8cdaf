"""stub"""
from figures.page import Page
PAGE = Page("studies/audit.py", {})
FIGURES = {}
