"""Draws."""
from dataclasses import dataclass
from pathlib import Path
@dataclass
class Config:
    dataset: Path
def main(c): pass
