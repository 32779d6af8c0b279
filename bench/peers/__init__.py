"""Other tools on the same model: one file a tool, run with the Python of the tool's own environment.

`draw` is what runs there. It and what it loads (`drawing` and the tools' files) import nothing of vitrify, so that an
environment needs no install of it. `table` lists the tools, `environments` builds what they live in.
"""
