"""The command line: parses options, calls one function of `commands`, and prints its result or its error.

Nothing is computed here, and nothing below imports this package. torch is imported when a command runs, not for help.
"""
