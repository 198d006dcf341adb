"""The processes that we start, and how each side sees the other die.

backoff    when a process that ended is started again
child      a module in a process of its own, joined to us by a socket pair
limits     bounds on what a child may take
service    a child that answers requests, started again after it died
crew       several such children, each with one thing to do at a time
programs   the programs of `duet up`
lifeline   how a program of `duet up` sees that `duet up` is gone
"""
