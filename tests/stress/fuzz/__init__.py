"""Damaged media files and damaged model folders, sent to a running stack.

media     media files of every kind that we read, and what damages them
folders   model folders of every kind, and what damages them
watch     the processes of the stack: which ended, and how much memory each took
verdict   what may answer a damaged file or folder
__main__  sends the cases and writes the result
"""
