"""Model folders as they are found: nothing in them is believed before it is checked.

The gateway inspects every folder once and says what is wrong with it. A worker inspects its folder again before it loads it,
because the folder may have changed. Neither runs anything of a folder.
"""
