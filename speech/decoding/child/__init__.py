"""The process that reads files.

decode       the process itself, and the decoding of one file
messages     what it is asked and what it answers
containers   what the first bytes of a file say
tracks       opens a file, and the facts about its audio tracks
timeline     where decoded frames lie in time
channels     which channels hold what is to be heard
"""
