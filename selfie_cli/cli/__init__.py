"""Turns words typed at a terminal into options objects, and results into tables, lines and JSON.

Each command of `app` calls one function of `commands`. Nothing is computed here, and nothing below imports it.
torch is imported only when a command runs, so that help stays fast.
"""
