"""One file per verb: a function takes the verb's options object and a `Talk`, and returns a frozen result.

An options object goes no deeper than this package; what two verbs share lives below, in the package it is about.
Commands return and never print; `cli` shows what they return.
"""
