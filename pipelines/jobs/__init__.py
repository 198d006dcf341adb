"""Durable jobs on DBOS, which no other folder knows.

The artifacts on disk are the truth. A step's recorded result is an artifact key, and a step that runs again finds what it
made before.

    kinds       what a kind of job is: a name, and its stages in order
    store       the database and its names, which outlive an upgrade
    client      submit, watch, cancel, retry and delete jobs
    worker      run jobs, and take over those of a dead worker
    executors   one id a living worker, held by a file lock
"""
