"""`duet-tiny-asr`: data, tokens, model, training and export of the embedded recogniser in SenseVoice's format."""
