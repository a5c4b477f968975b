"""The program's version; written when the wheel is made."""

__version__ = "0.2.0"
