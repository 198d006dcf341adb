"""Files that people send, as 16-bit mono PCM at 16 kHz.

decoder   decodes in child processes; what a service uses
errors    what is wrong with a file
pcm       the format of the result
child     the process that reads the file: nothing else here meets its bytes
"""
