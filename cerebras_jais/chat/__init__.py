"""Talking to a Jais.

What belongs here turns a conversation into an answer, in a terminal, a server or the browser.
"""
