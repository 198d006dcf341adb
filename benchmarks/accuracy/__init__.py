"""`duet bench cer` and `duet bench der`: how many errors recognition, review and diarization make on a manifest."""
